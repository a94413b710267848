"""The compiler that dynamo hands each graph to: inductor, which states that it compiled."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch._dynamo.utils

from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat_backends.torch_compile.frames import count_graph


class ReportingInductor(torch._TorchCompileInductorWrapper):
    """torch's own way into inductor, for the graphs of one variant of one network, ``what``.

    torch keeps every one of them for as long as the process lives: so it holds no weights.
    """

    def __init__(self, options: Mapping[str, Any], what: str) -> None:
        super().__init__(mode=None, options=dict(options), dynamic=False)  # type: ignore[no-untyped-call]
        self._what = what
        self.graphs = 0

    # Graphs of one variant are not looked for among those of another.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, model_: torch.fx.GraphModule, inputs_: Sequence[Any], **settings: Any) -> Any:
        """Compile a graph. dynamo calls it on the thread that waits, under its lock."""
        started_s = count_graph() or time.perf_counter()
        reason = _recompile_reason()
        before = _cache_counts()
        compiled = super().__call__(model_, inputs_, **settings)  # type: ignore[no-untyped-call]
        self.graphs += 1
        seconds = time.perf_counter() - started_s
        what = self._what if self.graphs == 1 else f"{self._what}: graph {self.graphs}"
        what = f"{what}: again, since {reason}" if reason else what
        report_compilation(Compilation(CompilationKind.GRAPH, what, seconds=seconds, cached=_cached(before)))
        return compiled


def _recompile_reason() -> str | None:
    """The guard that failed, where dynamo compiles code that it has compiled before."""
    context = getattr(torch._dynamo.utils, "get_metrics_context", lambda: None)()
    reason = getattr(context, "_metrics", {}).get("recompile_reason")
    return " ".join(str(reason).split()) if reason else None


def _cache_counts() -> tuple[int, int]:
    """How many graphs inductor has found in its cache, in this process, and how many it has compiled."""
    inductor = torch._dynamo.utils.counters["inductor"]
    return inductor["fxgraph_cache_hit"], inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"]


def _cached(before: tuple[int, int]) -> bool:
    found, compiled = (now - then for now, then in zip(_cache_counts(), before, strict=True))
    return found > 0 and compiled == 0
