"""What dynamo does on a thread besides giving us graphs: when it starts on a frame, and which frames it gives up.

dynamo tells so by callbacks, on the thread that waits. It counts the callbacks that are pending in the whole process
and leaves out those that begin while another is pending, on whatever thread: so the starts of nested ones are not seen.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch._dynamo.utils
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler

from preheat.compilations import Compilation, CompilationKind, report_compilation

# Things that are built at run time, for a graph that was compiled before. torch 2.13 does not fire the second one.
_KINDS = {
    CallbackTrigger.CUDAGRAPH_RECORDING: CompilationKind.CUDA_GRAPH,
    CallbackTrigger.TRITON_AUTOTUNING: CompilationKind.AUTOTUNING,
}


class _Frames(threading.local):
    """A thread's own account of the frame that dynamo has in hand, and of those that gave no graph."""

    def __init__(self) -> None:
        self.started_s = 0.0
        self.graphs = 0
        # Bounded: on threads of models that compile by themselves nobody takes them out.
        self.without_graph: deque[str] = deque(maxlen=64)


_FRAMES = _Frames()


def watch() -> None:
    """Begin, or begin again after torch._dynamo.reset(), which forgets all callbacks."""
    if _begin not in callback_handler.start_callbacks:
        callback_handler.register_start_callback(_begin)
    if _end not in callback_handler.end_callbacks:
        callback_handler.register_end_callback(_end)


def count_graph() -> float:
    """Note that the frame in hand gave a graph, and return when dynamo started on it, by time.perf_counter."""
    _FRAMES.graphs += 1
    return _FRAMES.started_s or time.perf_counter()


def report_given_up() -> Sequence[str]:
    """Report, once each, the frames that dynamo gave up on this thread and that run uncompiled from now on: and why."""
    if not _FRAMES.without_graph:
        return ()
    identifiers = set(_FRAMES.without_graph)
    _FRAMES.without_graph.clear()
    records = torch._dynamo.utils.get_compilation_metrics()
    given_up = [_explain(record) for record in records if record.compile_id in identifiers and record.fail_reason]
    for what in given_up:
        report_compilation(Compilation(CompilationKind.EAGER, what))
    return given_up


def _explain(record: Any) -> str:
    reason = str(record.fail_reason).strip().splitlines()[0]
    return f"{record.co_name} in {record.co_filename}:{record.co_firstlineno} runs uncompiled: {reason}"


def _begin(args: CallbackArgs) -> None:
    del args
    _FRAMES.started_s = time.perf_counter()
    _FRAMES.graphs = 0


def _end(args: CallbackArgs) -> None:
    kind = _KINDS.get(args.callback_trigger)
    if kind is not None:
        now_s = time.perf_counter()
        seconds = now_s - (_FRAMES.started_s or now_s)
        report_compilation(Compilation(kind, f"for graph {args.compile_id}", seconds=seconds))
    elif not _FRAMES.graphs:
        _FRAMES.without_graph.append(args.compile_id)
    # The next start may not be told.
    _FRAMES.started_s, _FRAMES.graphs = 0.0, 0
