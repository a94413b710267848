"""The thread that owns one instance: it opens the session, warms it, serves it and closes it."""

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TypeAlias

from preheat.backend import Instance, Model, Session
from preheat.compilations import recording
from preheat.errors import InternalError
from preheat.scheduling.batching import Choice
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.scheduling.execution import Executor
from preheat.scheduling.pacing import Pace
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.warming import WarmupReport

log = logging.getLogger(__name__)

# Batches up to here may run where their requests were received, which nothing else is while they do.
_QUICK_SECONDS = 0.001
# Of the newest batch in the average.
_WEIGHT = 0.1

WarmUp: TypeAlias = Callable[[Session, CompilationRecord], WarmupReport]


class Worker:
    """One instance of a model version, on a thread of its own for life.

    CUDA graphs, grad mode and thread counts belong to a thread, so what warms is what serves. Only a session that says
    that any thread may run it is lent to others, one at a time. :attr:`warm` resolves to what the warm-up did, or to
    why the instance could not be made ready; from then on the thread takes batches from ``queue`` until that is closed
    and empty, or it is to :meth:`leave`. ``record`` gets whatever is compiled for the instance; opening and warming
    goes on at ``pace``.
    """

    def __init__(
        self,
        model: Model,
        instance: Instance,
        *,
        name: str,
        warm_up: WarmUp,
        record: CompilationRecord,
        executor: Executor,
        queue: RequestQueue,
        pace: Pace = nullcontext,
    ) -> None:
        self._model = model
        self._instance = instance
        self._name = name
        self._warm_up = warm_up
        self._record = record
        self._executor = executor
        self._queue = queue
        self._pace = pace
        self.warm: Future[WarmupReport] = Future()
        # Held while a batch runs, by whichever thread runs it.
        self._turn = threading.Lock()
        # There, under _turn, while other threads may run it.
        self._lent: Session | None = None
        # What a batch takes, as a moving average, which begins with what the slowest took at warm-up.
        self._batch_s = math.inf
        self._leaving = threading.Event()
        # Daemon: a session that never returns must not keep the process from ending after the drain limit.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin opening and warming. Call once."""
        self._thread.start()

    @property
    def ordinal(self) -> int:
        """Which of the version's instances it is, from 0."""
        return self._instance.ordinal

    def runs_at(self, device: str, threads: int) -> bool:
        """Whether it runs there, with so many threads."""
        return (self._instance.device, self._instance.threads) == (device, threads)

    @property
    def busy(self) -> bool:
        """Whether a batch runs. Whoever runs it looks at the queue once more when it has ended."""
        return self._turn.locked()

    def run_here(self) -> bool:
        """Run what waits on the calling thread, if the session can be run on any and batches are soon done.

        For the thread that received the requests: to wake another takes longer than a quick batch. False if a worker
        has to be woken for what is left. Never raises.
        """
        while self._batch_s <= _QUICK_SECONDS:
            if not self._turn.acquire(blocking=False):
                return True
            try:
                if self._lent is None:
                    return False
                ran = self._run_ripe(self._lent)
            except BaseException:
                self._give_up()
                # Whoever came after that took the turn for a promise to look again.
                return False
            finally:
                self._turn.release()
            # What was put while the session was taken is nobody else's to see.
            if not len(self._queue):
                return True
            if not ran:
                return False
        return False

    def _run_ripe(self, session: Session) -> bool:
        """Run batches until none is to run now; whether any was."""
        choice = self._queue.take_now()
        if choice is None:
            return False
        with recording(self._record.record):
            while choice is not None:
                self._run_choice(session, choice)
                choice = self._queue.take_now() if len(self._queue) else None
        return True

    def leave(self) -> None:
        """Take no further batch; the session is closed and the thread ends. For the caller to :meth:`join`."""
        self._leaving.set()
        self._lend(None)
        self._queue.wake_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end, at most ``timeout_s``; whether it has, or was never started."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with recording(self._record.record):
            try:
                with self._pace():
                    session = self._model.open(self._instance)
            except BaseException as exc:  # whatever a backend raises must reach who waits
                self.warm.set_exception(exc)
                return
            try:
                with self._pace():
                    report = self._warm_up(session, self._record)
                # Before anyone can know that it is warm: what is compiled from now on is cold.
                self._record.ready = True
                self._batch_s = report.slowest_s
                self._lend(session)
                self.warm.set_result(report)
            except BaseException as exc:
                self.warm.set_exception(exc)
            else:
                self._serve(session)
            finally:
                self._lend(None)
                self._close(session)

    def _serve(self, session: Session) -> None:
        """Serve until the queue is closed and empty. Nothing ends this loop early: a READY model without it hangs."""
        while True:
            try:
                if not self._serve_once(session):
                    return
            except BaseException:
                self._give_up()

    def _serve_once(self, session: Session) -> bool:
        """Run one batch; False once the queue is closed and empty. Keeps no hold of the batch afterwards."""
        choice = self._queue.take(self._leaving.is_set)
        if choice is None:
            return False
        with self._turn:
            self._run_choice(session, choice)
        return True

    def _run_choice(self, session: Session, choice: Choice) -> None:
        for pending in choice.expired:
            self._executor.refuse_expired(pending)
        if choice.batch:
            started_s = time.monotonic()
            self._executor.execute(session, choice.batch)
            if choice.batch[0].counts:
                taken_s = time.monotonic() - started_s
                known_s = self._batch_s if math.isfinite(self._batch_s) else taken_s
                self._batch_s = known_s + _WEIGHT * (taken_s - known_s)

    def _lend(self, session: Session | None) -> None:
        """Let other threads run ``session``, if they can; None: take it back, which waits for whoever has it."""
        with self._turn:
            self._lent = session if session is not None and session.any_thread else None

    def _give_up(self) -> None:
        log.exception("%s: the scheduler failed; what waited is refused", self._name)
        for pending in self._queue.drain():
            pending.answer(InternalError())

    def _close(self, session: Session) -> None:
        try:
            session.close()
        except BaseException:
            log.exception("closing %s failed", self._name)
