"""How long a thread may keep the interpreter's lock while models load beside others that serve."""

import importlib.abc
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

# Python's own is 5 ms, which each of the several steps of a request may have to wait while a load runs. Shorter still
# was no better for those who wait, and the load took longer (benchmarks.beside).
_SECONDS = 0.0005
# An import of torch's compilers is two seconds of work of which nothing lets the lock go by itself.
_PAUSE_TO_WORK = 3.0
_LONGEST_PAUSE_S = 0.2

_lock = threading.Lock()
_usual_s = 0.0


class _Pauses(importlib.abc.MetaPathFinder):
    """Finds no module, but lets a thread that imports sleep between one and the next, for longer than it works.

    While models load beside others: not the threads that were there before, but for those that load. The interpreter
    holds its lock of imports meanwhile, so whoever else imports something new then waits for the end of the sleep.
    """

    def __init__(self) -> None:
        self._worked = threading.local()
        self.loads: list[int] = []
        self.spared: frozenset[int] = frozenset()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        """Called by the interpreter for each module that is not imported yet."""
        me = threading.get_ident()
        if not self.loads or (me in self.spared and me not in self.loads):
            return
        now_s = time.thread_time()
        # What it worked before these loads is no import.
        earlier = getattr(self._worked, "spared", None) is not self.spared
        worked_s = 0.0 if earlier else now_s - self._worked.since_s
        time.sleep(min(worked_s * _PAUSE_TO_WORK, _LONGEST_PAUSE_S))
        self._worked.since_s, self._worked.spared = time.thread_time(), self.spared


_pauses = _Pauses()


@contextmanager
def handing_over_often() -> Iterator[None]:
    """Have threads of the whole process hand over the lock sooner, and those that load pause between what they import.

    Until the block ends. Any thread; blocks overlap.
    """
    global _usual_s  # noqa: PLW0603 - the interval is the process's
    me = threading.get_ident()
    with _lock:
        if not _pauses.loads:
            _usual_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual_s, _SECONDS))
            _pauses.spared = frozenset(thread.ident for thread in threading.enumerate() if thread.ident)
            if _pauses not in sys.meta_path:
                # For good: taken away, it would have a thread that is looking for a module miss the next finder.
                sys.meta_path.insert(0, _pauses)
        _pauses.loads.append(me)
    try:
        yield
    finally:
        with _lock:
            _pauses.loads.remove(me)
            if not _pauses.loads:
                sys.setswitchinterval(_usual_s)
