"""Facts about compiling, stated where they happen and attributed by thread.

Whatever makes a request wait for something to be built (a graph, a tuned kernel, a captured CUDA graph, an engine,
a session) or makes it run uncompiled, its backend states by :func:`report_compilation` on the thread it happened on.
Who owns the thread has the facts delivered to it by :func:`recording`; elsewhere they are dropped.
"""

import enum
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias


class CompilationKind(enum.Enum):
    """What was built. The values are label values of the metrics."""

    GRAPH = "graph"
    AUTOTUNING = "autotuning"
    CUDA_GRAPH = "cuda_graph"
    ENGINE = "engine"
    SESSION = "session"
    # Nothing was built: a request ran uncompiled, because its shape is outside every bucket.
    EAGER = "eager"


@dataclass(frozen=True, slots=True)
class Compilation:
    """One thing that was built, or one fallback: ``what`` names shapes and, where it is known, the guard that failed.

    ``seconds`` is how long it took; ``cached`` whether most of it came from the compile cache.
    """

    kind: CompilationKind
    what: str
    seconds: float = 0.0
    cached: bool = False


Recorder: TypeAlias = Callable[[Compilation], None]
# By thread identifier. Each thread reads and writes its own entry only.
_RECORDERS: dict[int, Recorder] = {}


def report_compilation(compilation: Compilation) -> None:
    """State ``compilation``, on the thread it happened on. Never raises for want of a listener."""
    recorder = _RECORDERS.get(threading.get_ident())
    if recorder is not None:
        recorder(compilation)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Have what this thread reports delivered to ``recorder``, on this thread, until the block ends. Nests."""
    thread = threading.get_ident()
    outer = _RECORDERS.get(thread)
    _RECORDERS[thread] = recorder
    try:
        yield
    finally:
        if outer is None:
            del _RECORDERS[thread]
        else:
            _RECORDERS[thread] = outer
