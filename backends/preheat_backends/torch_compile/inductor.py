"""The compiler that dynamo hands each graph to: inductor, which states that it compiled."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo.utils
from torch._guards import CompileContext, TracingContext

from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat.errors import ExecutionFailed
from preheat_backends.torch_compile.cache import caching_in, count_binaries
from preheat_backends.torch_compile.frames import count_graph, watch
from preheat_backends.torch_compile.generated import generated_modules
from preheat_backends.torch_compile.options import Recipe

if TYPE_CHECKING:
    from types import ModuleType

# Of one function, in one network, for one variant of its inputs. A part that is repeated, and compiled apart since
# graphs break, needs one for each size that it has.
MOST_GRAPHS = 32


class ReportingInductor(torch._TorchCompileInductorWrapper):
    """torch's own way into inductor, for the graphs of one variant of one network, ``what``.

    torch keeps every one of them for as long as the process lives: so ``generated``, the modules that inductor made,
    which hold frozen weights, are to be taken out when the network is closed.
    """

    def __init__(self, recipe: Recipe, what: str) -> None:
        super().__init__(mode=None, options=dict(recipe.inductor), dynamic=False)  # type: ignore[no-untyped-call]
        self._what = what
        self._cache_path = recipe.cache_path
        self._on_cpu = recipe.device == "cpu"
        self.graphs = 0
        self._graphs_of: Counter[int | None] = Counter()
        self.generated: list[ModuleType] = []
        self.first_graph: _FirstGraph | None = None

    # Graphs of one variant are not looked for among those of another.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, model_: torch.fx.GraphModule, inputs_: Sequence[Any], **settings: Any) -> Any:
        """Compile a graph. dynamo calls it on the thread that waits, under its lock.

        Raises ExecutionFailed, which dynamo wraps, for a network that needs ever more graphs.
        """
        watch()
        self._count_function()
        started_s = count_graph()
        reason = _recompile_reason()
        with caching_in(self._cache_path, on_cpu=self._on_cpu):
            before = self._cache_counts()
            if any(_may_be_index(each) for each in inputs_):
                self._use_one_thread()
            compiled, generated = self._generate(model_, inputs_, settings)
            if self._several_threads and not (generated and all(map(_keeps_failures_in, generated))):
                self._use_one_thread()
                compiled, _ = self._generate(model_, inputs_, settings)
        self.graphs += 1
        self.first_graph = self.first_graph or _FirstGraph(model_, compiled)
        seconds = time.perf_counter() - started_s
        what = self._what if self.graphs == 1 else f"{self._what}: graph {self.graphs}"
        what = f"{what}: again, since {reason}" if reason else what
        report_compilation(Compilation(CompilationKind.GRAPH, what, seconds=seconds, cached=self._cached(before)))
        return self.first_graph if self.graphs == 1 else compiled

    def _count_function(self) -> None:
        compilation = CompileContext.current_compile_id()
        function = compilation.frame_id if compilation else None
        self._graphs_of[function] += 1
        if self._graphs_of[function] > MOST_GRAPHS:
            raise ExecutionFailed(
                f"the network needs more than {MOST_GRAPHS} graphs of one function, which is the limit: what it does "
                "depends on more than its inputs; TORCH_LOGS=recompiles shows on what"
            )

    def _generate(
        self, graph: torch.fx.GraphModule, inputs: Sequence[Any], settings: Mapping[str, Any]
    ) -> tuple[Any, Sequence["ModuleType"]]:
        """A graph compiled, and the modules that were made for it: none if the process had them."""
        known = generated_modules()
        compiled = super().__call__(graph, inputs, **settings)  # type: ignore[no-untyped-call]
        generated = [module for module in generated_modules() if module not in known]
        self.generated += generated
        return compiled, generated

    @property
    def _several_threads(self) -> bool:
        """Whether kernels are made for several threads of the CPU."""
        return self._on_cpu and self.config.get("cpp.threads") != 1 and torch.get_num_threads() > 1

    def _use_one_thread(self) -> None:
        """Have kernels from here on run on the thread that calls them, on the CPU; matrix products still use more.

        Indices are checked within the kernel. With several threads, what is thrown there leaves an OpenMP region, and
        ends the process: a single bad token, sent by anyone. On one thread it is an error of that request.
        """
        if self._on_cpu:
            self.config["cpp.threads"] = 1

    def _cache_counts(self) -> tuple[int, int, int]:
        """How many graphs inductor has found in its cache, in this process; had to compile; and cannot keep.

        The last are such as hold weights in a format of oneDNN. Their kernels are kept, so it is those that tell.
        """
        counts = torch._dynamo.utils.counters["inductor"]
        binaries = count_binaries(self._cache_path) if self._cache_path else -1
        return counts["fxgraph_cache_hit"], counts["fxgraph_cache_miss"], binaries

    def _cached(self, before: tuple[int, int, int]) -> bool:
        """Whether nothing had to be compiled since ``before``."""
        hits, misses, binaries = (now - then for now, then in zip(self._cache_counts(), before, strict=True))
        return misses == 0 and (hits > 0 or (self._cache_path is not None and binaries == 0))


class _FirstGraph:
    """A graph as it was traced, and what its first run gave. Several threads may call it."""

    def __init__(self, graph: torch.fx.GraphModule, call: Callable[..., Any]) -> None:
        self.call = call
        self.inputs = [_source(node) for node in graph.graph.nodes if node.op == "placeholder"]
        self.code = tuple(TracingContext.get_traced_code() or ())
        self.outputs: Sequence[Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Run it."""
        outputs = self.call(*inputs)
        if self.outputs is None:
            self.outputs = outputs
        return outputs


def _source(node: torch.fx.Node) -> str:
    """Where an input of the graph comes from, as dynamo writes it; empty if it does not say."""
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _may_be_index(value: object) -> bool:
    """Whether a graph's input may be what another tensor is indexed by."""
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32)


def _keeps_failures_in(module: "ModuleType") -> bool:
    """Whether nothing that kernels in a generated module throw leaves an OpenMP region."""
    text = Path(module.__file__ or "").read_text()
    return "TORCH_CHECK(" not in text or "#pragma omp parallel" not in text


def _recompile_reason() -> str | None:
    """The guard that failed, where dynamo compiles code that it has compiled before."""
    context = getattr(torch._dynamo.utils, "get_metrics_context", lambda: None)()
    reason = getattr(context, "_metrics", {}).get("recompile_reason")
    return " ".join(str(reason).split()) if reason else None
