"""The thread that owns one instance: it opens the session, warms it, serves it and closes it."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

from preheat.backend import Instance, Model, Session
from preheat.compilations import recording
from preheat.errors import InternalError
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.scheduling.execution import Executor
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.warming import WarmupReport

log = logging.getLogger(__name__)

WarmUp: TypeAlias = Callable[[Session, CompilationRecord], WarmupReport]


class Worker:
    """One instance of a model version, on a thread of its own for life.

    CUDA graphs, grad mode and thread counts belong to a thread, so what warms is what serves. The session never
    leaves the thread. :attr:`warm` resolves to what the warm-up did, or to why the instance could not be made ready;
    from then on the thread takes batches from ``queue`` until that is closed and empty. ``record`` gets whatever is
    compiled on the thread.
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
    ) -> None:
        self._model = model
        self._instance = instance
        self._name = name
        self._warm_up = warm_up
        self._record = record
        self._executor = executor
        self._queue = queue
        self.warm: Future[WarmupReport] = Future()
        # Daemon: a session that never returns must not keep the process from ending after the drain limit.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin opening and warming. Call once."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end, at most ``timeout_s``; whether it has, or was never started."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with recording(self._record.record):
            try:
                session = self._model.open(self._instance)
            except BaseException as exc:  # whatever a backend raises must reach who waits
                self.warm.set_exception(exc)
                return
            try:
                report = self._warm_up(session, self._record)
                # Before anyone can know that it is warm: what is compiled from now on is cold.
                self._record.ready = True
                self.warm.set_result(report)
            except BaseException as exc:
                self.warm.set_exception(exc)
            else:
                self._serve(session)
            finally:
                self._close(session)

    def _serve(self, session: Session) -> None:
        """Serve until the queue is closed and empty. Nothing ends this loop early: a READY model without it hangs."""
        while True:
            try:
                if not self._serve_once(session):
                    return
            except BaseException:
                log.exception("%s: the scheduler failed; what waited is refused", self._name)
                for pending in self._queue.drain():
                    pending.answer(InternalError())

    def _serve_once(self, session: Session) -> bool:
        """Run one batch; False once the queue is closed and empty. Keeps no hold of the batch afterwards."""
        choice = self._queue.take()
        if choice is None:
            return False
        for pending in choice.expired:
            self._executor.refuse_expired(pending)
        if choice.batch:
            self._executor.execute(session, choice.batch)
        return True

    def _close(self, session: Session) -> None:
        try:
            session.close()
        except BaseException:
            log.exception("closing %s failed", self._name)
