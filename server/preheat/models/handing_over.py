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
_loads = 0
_usual_s = 0.0


class _Pauses(importlib.abc.MetaPathFinder):
    """Finds no module, but lets a thread that imports sleep between one and the next, for longer than it works."""

    def __init__(self) -> None:
        self._worked = threading.local()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        """Called by the interpreter for each module that is not imported yet."""
        if threading.current_thread() is threading.main_thread():
            return  # which runs the event loop
        now_s = time.thread_time()
        worked_s = now_s - getattr(self._worked, "since_s", now_s)
        time.sleep(min(worked_s * _PAUSE_TO_WORK, _LONGEST_PAUSE_S))
        self._worked.since_s = time.thread_time()


_pauses = _Pauses()


@contextmanager
def handing_over_often() -> Iterator[None]:
    """Have threads of the whole process hand over the lock sooner, and pause between the modules that they import.

    Until the block ends. Any thread; blocks overlap.
    """
    global _loads, _usual_s  # noqa: PLW0603 - the interval is the process's
    with _lock:
        if not _loads:
            _usual_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual_s, _SECONDS))
            sys.meta_path.insert(0, _pauses)
        _loads += 1
    try:
        yield
    finally:
        with _lock:
            _loads -= 1
            if not _loads:
                sys.meta_path.remove(_pauses)
                sys.setswitchinterval(_usual_s)
