"""How long a thread may keep the interpreter's lock while models load beside others that serve."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Python's own is 5 ms, which each of the several steps of a request may have to wait while a load runs. Shorter still
# was no better for those who wait, and the load took longer (benchmarks.beside).
_SECONDS = 0.0005
_lock = threading.Lock()
_loads = 0
_usual_s = 0.0


@contextmanager
def handing_over_often() -> Iterator[None]:
    """Have threads of the whole process hand over the lock sooner until the block ends. Any thread; blocks overlap."""
    global _loads, _usual_s  # noqa: PLW0603 - the interval is the process's
    with _lock:
        if not _loads:
            _usual_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual_s, _SECONDS))
        _loads += 1
    try:
        yield
    finally:
        with _lock:
            _loads -= 1
            if not _loads:
                sys.setswitchinterval(_usual_s)
