"""For how much of the time loads work beside models that serve: for a moment, then comes a pause.

Lower priority is no way: who waits for the interpreter's lock would wait for whoever has it at low priority, and a
thread that warms is the one that will serve, which could not take its priority back. The moments are ended where the
thread calls a function, of Python or of C, as the interpreter tells profilers (sys.setprofile): so between the
kernels of a batch too. What is one call, as the session of an engine in C++ may be, goes on until it returns.
From Python 3.12 on, the interpreter tells of one thread's calls at the cost of all threads', so there it helps less.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TypeAlias

# What a request waits for at most, where no single call is longer.
_WORK_S = 0.002
# After a call that took long.
_LONGEST_PAUSE_S = 0.2
# A thread that was not seen for so long waits for something, and takes nothing of what the others may.
_WAITS_S = 1.0
# Packages that take locks which threads that serve take too; and so does whoever submits to an executor.
_SHARING_LOCKS = ("logging.", "preheat.telemetry.")
_SUBMITTING = ("concurrent.futures.thread", "submit")

# What holds up the thread that enters it, for as long as it is in there.
Pace: TypeAlias = Callable[[], AbstractContextManager[None]]
_Profiler: TypeAlias = Callable[[FrameType, str, object], None]


class _Own(threading.local):
    """Of each thread: how long it has paused in its life, in seconds."""

    paused_s = 0.0


_own = _Own()


def working_s() -> float:
    """time.monotonic(), but that it stands still while the calling thread pauses."""
    return time.monotonic() - _own.paused_s


class Pacer:
    """Has threads that load pause. Any thread may call it."""

    def __init__(self, share: float, *, in_use: Callable[[], bool]) -> None:
        """``share``: of the time that all paced threads together may work, above 0; 1: none ever pauses.

        ``in_use``: whether pauses are for anyone's good, asked at each.
        """
        self._share = share
        self._in_use = in_use
        # When each thread that is paced was last seen at work, by its identifier. It alone writes its entry.
        self._seen_s: dict[int, float] = {}

    @contextmanager
    def paced(self) -> Iterator[None]:
        """Have the calling thread pause again and again until the block ends.

        Not if it is being profiled already: an interpreter has one profiler for a thread.
        """
        if self._share >= 1 or sys.getprofile() is not None:
            yield
            return
        look = self._profiler()
        sys.setprofile(look)
        try:
            yield
        finally:
            # Unless what was run has put its own in the place.
            if sys.getprofile() is look:
                sys.setprofile(None)
            self._seen_s.pop(threading.get_ident(), None)

    def _profiler(self) -> _Profiler:
        clock = time.perf_counter
        began_s = self._seen_s[threading.get_ident()] = clock()

        def look(frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG001 - the interpreter's
            """Called at each call and return of the thread, a million times in a load: short."""
            nonlocal began_s
            worked_s = clock() - began_s
            if worked_s < _WORK_S or _shares_a_lock(frame):
                return
            self._pause(worked_s)
            began_s = self._seen_s[threading.get_ident()] = clock()

        return look

    def _pause(self, worked_s: float) -> None:
        if not self._in_use():
            return
        pause_s = min(worked_s * (self._working() / self._share - 1), _LONGEST_PAUSE_S)
        began_s = time.monotonic()
        time.sleep(pause_s)
        _own.paused_s += time.monotonic() - began_s

    def _working(self) -> int:
        """How many threads that are paced work: the calling one, and those seen lately."""
        since_s, me = time.perf_counter() - _WAITS_S, threading.get_ident()
        return 1 + sum(seen_s > since_s for thread, seen_s in self._seen_s.copy().items() if thread != me)


def _shares_a_lock(frame: FrameType | None) -> bool:
    """Whether the thread may hold a lock that those who serve wait for."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if f"{module}.".startswith(_SHARING_LOCKS) or (module, frame.f_code.co_name) == _SUBMITTING:
            return True
        frame = frame.f_back
    return False
