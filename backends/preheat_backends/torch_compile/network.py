"""One network, compiled for one kind of inputs."""

import builtins
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch._inductor
import torch.fx.experimental._config
from torch._dynamo.exc import Unsupported

from preheat.errors import ExecutionFailed
from preheat_backends.torch_compile.breaks import graph_breaks, place, summarize
from preheat_backends.torch_compile.cache import caching_in
from preheat_backends.torch_compile.frames import report_given_up
from preheat_backends.torch_compile.generated import release
from preheat_backends.torch_compile.inductor import ReportingInductor
from preheat_backends.torch_compile.kept import CannotKeep, Traced
from preheat_backends.torch_compile.options import Recipe
from preheat_backends.torch_programs.program import Arguments

# What dynamo guards on that is the process's, and that another model may set at any time. What is the thread's among
# it (grad mode, autocast, the number of threads) is as the session set it.
_OF_THE_PROCESS = frozenset({"GLOBAL_STATE", "DEFAULT_DEVICE"})

# What names of torch's own global variables have in them: which version of torch it is, is in the cache's key.
_OF_TORCH = "G['__import_torch_dot_"
_BUILTINS = "G['__builtins_dict__"
# What code that torch.fx generated has for globals; that code is told whole.
_GENERATED = "G['___unnamed_scope"


class CompiledNetwork:
    """``module``, compiled for the inputs that ``what`` describes.

    ``compile`` is called first, under the lock; after that, calls may come from several threads.
    """

    def __init__(self, module: torch.nn.Module, recipe: Recipe, what: str) -> None:
        self._recipe = recipe
        self._function = _own_function(module)
        self._compiler = ReportingInductor(recipe, what)
        # dynamic=False: nothing is dynamic but what is marked so. No isolate_recompiles: torch 2.13 keeps the region
        # for the process, and a thread that is interrupted in such a call files its graph under another's network.
        self._network: Callable[..., object] = torch.compile(
            self._function,
            fullgraph=recipe.fullgraph,
            dynamic=False,
            backend=self._compiler,
            options={"guard_filter_fn": self._filter_guards},
        )
        self._breaks_before = graph_breaks()
        self._breaks: Counter[str] | None = None
        self._constants: dict[str, object] = {}

    @property
    def breaks(self) -> Counter[str]:
        """Why its graphs broke when it was compiled, and how often; until then, those of this thread's so far.

        torch counts them for the process. But it compiles one thing at a time, and this is first read in a compilation.
        """
        return graph_breaks() - self._breaks_before if self._breaks is None else self._breaks

    def __call__(self, arguments: Arguments) -> object:
        """Run it."""
        return self._network(*arguments.positional, **arguments.keyword)

    def compile(self, arguments: Arguments) -> object:
        """Run it for the first time. Raises ExecutionFailed where it compiles otherwise than was asked for."""
        try:
            with _compiling(self._recipe):
                result = self(arguments)
            given_up = report_given_up()
            if given_up and not self._compiler.graphs:
                raise ExecutionFailed(f"nothing of the network compiles: {given_up[0]}; backend eager would serve it")
        except Unsupported as exc:
            raise ExecutionFailed(
                "the network does not compile as one graph, which parameter fullgraph asks for: "
                f"{summarize([str(exc)])}{place(str(exc))}"
            ) from exc
        finally:
            self._breaks = self.breaks
        return result

    def take_traced(self) -> Traced:
        """What tracing found. Call once, after :meth:`compile`. Raises CannotKeep where it is not the whole network."""
        graph = self._compiler.first_graph
        if graph is None:
            raise CannotKeep("it has no graph")
        outputs, graph.outputs = graph.outputs or (), ()
        if self._compiler.graphs != 1 or self.breaks:
            raise CannotKeep("it is not one graph")
        return Traced(graph.inputs, graph.code, graph.call, outputs, self._constants, self._compiler.generated)

    def tell_breaks(self) -> str:
        """Where its graphs break, and what to do about it, in one line."""
        return (
            f"the network compiles as {self._compiler.graphs} graphs, with Python in between: "
            f"{summarize(list(self.breaks))}. Each break costs time on every request, and what lies between runs "
            "uncompiled; parameter fullgraph: true makes it an error, TORCH_LOGS=graph_breaks shows the lines"
        )

    def close(self) -> None:
        """Have torch forget the graphs."""
        # torch keeps the compiler for as long as the process lives, and the graph would keep frozen weights.
        self._compiler.first_graph = None
        release([self._function.__code__], self._compiler.generated)
        self._compiler.generated.clear()

    def _filter_guards(self, guards: Sequence[Any]) -> Sequence[bool]:
        """Which guards to keep: all, if there is Python between graphs, for it may change what they look at.

        Otherwise none on state of the process. One graph computes as it was compiled to, whatever another model has
        since set, as torch.set_default_dtype does for all threads: compiling again would be slow, and change answers.
        """
        self._constants |= {guard.name: guard.value for guard in guards if guard.is_global and _matters(guard)}
        if self.breaks:
            return [True] * len(guards)
        return [guard.guard_type not in _OF_THE_PROCESS for guard in guards]


@contextmanager
def _compiling(recipe: Recipe) -> Iterator[None]:
    """Set this thread up to compile.

    Options given to the compiler reach inductor only, but freezing begins in dynamo. What Triton tunes when a kernel
    first runs is to be kept with the kernel. And sizes that happen to be equal in the first call, say the batch's and
    the sequence's, must not be taken for one.
    """
    inductor: Any = torch._inductor.config  # to the type checker, neither has patch()
    shapes: Any = torch.fx.experimental._config
    with (
        caching_in(recipe.cache_path, on_cpu=recipe.device == "cpu"),
        inductor.patch(dict(recipe.inductor)),
        shapes.patch(use_duck_shape=False),
    ):
        yield


def _own_function(module: torch.nn.Module) -> FunctionType:
    """The call of ``module`` as a function that shares neither its code nor its globals with any other.

    torch keeps graphs by code object: otherwise all functions made here would share one list of them, and one limit.
    And it puts what it compiled into the function's globals.
    """

    def network(*args: torch.Tensor, **kwargs: torch.Tensor) -> object:
        return module(*args, **kwargs)

    return FunctionType(
        network.__code__.replace(),
        {"__builtins__": builtins, "__name__": __name__},
        network.__name__,
        None,
        network.__closure__,
    )


def _matters(guard: Any) -> bool:
    """Whether a guard on a global is on what may be another in another process: a value, or which code is called."""
    known = any(place in guard.name for place in (_OF_TORCH, _BUILTINS, _GENERATED))
    named = known or isinstance(guard.value, ModuleType)
    return not named and guard.guard_type != "DUPLICATE_INPUT"
