"""Model versions on their way out: drained, kept for a while in case they are wanted back, closed, and freed."""

import logging
import threading
import time
from dataclasses import dataclass

from preheat.errors import ServerStopping
from preheat.memory.process import release_free_memory, resident_bytes
from preheat.models.handle import Handle
from preheat.models.lifecycle import State
from preheat.models.registry import Registry
from preheat.telemetry.events import Observer, VersionFreed

log = logging.getLogger(__name__)

# What drained sessions get to close, all together, when the server stops; one that still hangs then is left behind.
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Unloaded:
    """How unloading went: requests that got an error for want of time, and models of which a session hangs."""

    abandoned: int
    hanging: int


class Departures:
    """Lets handles go, and in. Any thread may call it.

    ``_leaving`` are handles that drain or close in the background, ``_kept`` those that are routed to no more but wait
    for whether they are wanted back, ``_closing`` those that are drained and being freed. All change, and
    ``_stopping`` is set, under ``_lock``: a handle that is in none and not routed to is its caller's, and from stopping
    on, all but those that close are :meth:`stop`'s.
    """

    def __init__(self, registry: Registry, *, observer: Observer) -> None:
        self._registry = registry
        self._observer = observer
        self._lock = threading.Lock()
        self._leaving: set[Handle] = set()
        self._kept: dict[Handle, threading.Timer] = {}
        self._closing: set[Handle] = set()
        self._closed = threading.Condition(self._lock)
        self._stopping = threading.Event()

    @property
    def stopping(self) -> threading.Event:
        """Set once the server stops: nothing is to be loaded any more."""
        return self._stopping

    def publish(self, handle: Handle) -> Handle | None:
        """Route requests to ``handle``; what served its version until now is the caller's, to :meth:`let_go`.

        Raises ServerStopping, and then ``handle`` is still the caller's.
        """
        with self._lock:
            if self._stopping.is_set():
                raise ServerStopping("the server is stopping")
            replaced = self._registry.publish(handle)
            if replaced is not None:
                self._leaving.add(replaced)
                # Within the lock: stop(), which takes over whoever is leaving, must not find it READY.
                replaced.lifecycle.move_to(State.DRAINING)
        return replaced

    def retire(self, handle: Handle) -> bool:
        """Route to ``handle`` no more; it is the caller's, to :meth:`let_go`. False: the server stops, and has it."""
        with self._lock:
            if self._stopping.is_set():
                return False
            self._leaving.add(handle)
            self._registry.retire(handle)
        return True

    def let_go(self, handle: Handle, *, keep_s: float = 0.0) -> None:
        """Have ``handle`` drained and closed in the background, however long its requests take.

        With ``keep_s``, only after that time, in which :meth:`take_back` can have it.
        """
        with self._lock:
            if self._stopping.is_set():
                return
            if keep_s:
                self._leaving.discard(handle)
                handle.lifecycle.move_to(State.UNLOADED, f"replaced, and kept in memory for {keep_s:.0f} s")
                timer = threading.Timer(keep_s, self.let_go_kept, args=(handle,))
                timer.daemon = True
                self._kept[handle] = timer
                timer.start()
                return
        threading.Thread(target=self.release, args=(handle,), name=f"{handle.name} leaves", daemon=True).start()

    def let_go_kept(self, handle: Handle) -> None:
        """As :meth:`let_go`, of one that is kept; no effect if it is not any more."""
        if self._end_keeping(handle):
            self.let_go(handle)

    def release_kept(self, handle: Handle) -> bool:
        """As :meth:`release`, of one that is kept; False if it is not any more."""
        if not self._end_keeping(handle):
            return False
        self.release(handle)
        return True

    def _end_keeping(self, handle: Handle) -> bool:
        """Have a kept handle be leaving; False if it is not kept any more."""
        with self._lock:
            timer = self._kept.pop(handle, None)
            if timer is None or self._stopping.is_set():
                return False
            timer.cancel()
            self._leaving.add(handle)
            return True

    def take_back(self, handle: Handle) -> bool:
        """Have a kept handle, which can serve at once; False if it is not kept any more."""
        with self._lock:
            timer = self._kept.pop(handle, None)
            if timer is None or self._stopping.is_set():
                return False
            timer.cancel()
            return True

    def release(self, handle: Handle) -> None:
        """Drain and close a handle that is leaving. Blocks, however long its requests take."""
        handle.drain()
        with self._lock:
            if self._stopping.is_set():
                return  # stop() has it
            self._leaving.discard(handle)
            self._closing.add(handle)
        try:
            handle.stop_workers()
            before = resident_bytes()
            if self._close(handle, None):
                release_free_memory()
                self._observer(VersionFreed(handle.name, handle.version, before - resident_bytes()))
        finally:
            with self._lock:
                self._closing.discard(handle)
                self._closed.notify_all()

    def discard(self, handle: Handle) -> None:
        """Close a handle that nobody was ever routed to."""
        handle.stop_workers()
        handle.close(_CLOSE_SECONDS)

    def stop(self, timeout_s: float) -> Unloaded:
        """Drain and close every model within ``timeout_s``; nothing can be loaded any more.

        What is accepted before is answered: by its model if that is done in time, else with ServerStopping.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            self._stopping.set()
            serving = self._registry.handles()
            left = [*self._leaving, *self._kept]
            for timer in self._kept.values():
                timer.cancel()
        for handle in serving:
            self._registry.retire(handle)
        handles = serving + left
        drained = [handle.drain(max(0.0, deadline_s - time.monotonic())) for handle in handles]
        abandoned = sum(
            handle.abandon(ServerStopping("the server stopped before the request was finished"))
            for handle, done in zip(handles, drained, strict=True)
            if not done
        )
        for handle in handles:
            handle.stop_workers()
        deadline_s = time.monotonic() + _CLOSE_SECONDS
        closed = [self._close(handle, max(0.0, deadline_s - time.monotonic())) for handle in handles]
        with self._closed:
            self._closed.wait_for(lambda: not self._closing, max(0.0, deadline_s - time.monotonic()))
            hanging = len(self._closing)
        return Unloaded(abandoned, closed.count(False) + hanging)

    def _close(self, handle: Handle, timeout_s: float | None) -> bool:
        """Free a drained handle; whether nothing of it is left."""
        closed = handle.close(timeout_s)
        # One that was kept has come to its end before.
        if handle.lifecycle.state is State.DRAINING:
            if closed:
                handle.lifecycle.move_to(State.UNLOADED, "unloaded")
            else:
                handle.lifecycle.move_to(State.FAILED, "a session hangs, or could not be closed")
        return closed
