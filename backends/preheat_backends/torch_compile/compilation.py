"""torch.compile, held to what a server needs of it.

A graph is compiled by the first call that needs it, on the instance's thread, and serves every other instance: what is
compiled under one thread's settings is good for all threads that have the same. What torch keeps by thread, and until
2.12 kept for the process, is set here and nowhere else.
"""

import builtins
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import torch
import torch._dynamo
import torch._dynamo.utils
import torch._inductor
import torch.fx.experimental._config
from torch._dynamo.exc import FailOnRecompileLimitHit

from preheat.backend import ModelSource, Signature
from preheat.errors import BackendMissing, ExecutionFailed, InvalidConfig
from preheat_backends.torch_compile.release import generated_modules, release
from preheat_backends.torch_compile.variants import Variants
from preheat_backends.torch_programs.program import Arguments, Program, Wrapped

# dynamo compiles one frame at a time in the whole process. It does not look again, once it has its lock, whether
# another thread has meanwhile compiled the same: without this lock every instance would compile every graph.
_COMPILING = threading.Lock()
Network: TypeAlias = Callable[..., object]


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile.

    ``freezing``: the weights are constants, which are folded and laid out for the kernels; they are held twice.
    ``fullgraph``: a network that does not compile as one graph is an error. ``dynamic``: batch size and varying
    dimensions are symbols, and one graph serves all their sizes from 2.
    """

    freezing: bool = False
    fullgraph: bool = False
    dynamic: bool = False

    @property
    def inductor(self) -> dict[str, Any]:
        """As inductor's options."""
        return {"freezing": self.freezing}


def check_compilable(
    source: ModelSource, signature: Signature, options: CompileOptions, *, device: torch.device
) -> None:
    """Raise InvalidConfig for shapes that static graphs cannot serve, BackendMissing where there is no compiler."""
    if not options.dynamic:
        for spec in signature.inputs:
            for axis in spec.shape:
                if axis.size is None:
                    raise InvalidConfig(
                        f"{source.config_path}: input '{spec.name}': its dimension {axis} varies, and each size would "
                        "be compiled when a request first has it; set parameter dynamic: true, or fix its dims"
                    )
    if device.type == "cpu":
        _require_cpp_compiler(source)


def _require_cpp_compiler(source: ModelSource) -> None:
    """Inductor's kernels for the CPU are C++, which it has compiled, and which include Python's headers."""
    compilers: Any = torch._inductor.config.cpp.cxx
    names = [name for name in (compilers if isinstance(compilers, tuple | list) else (compilers,)) if name]
    if not any(shutil.which(name) for name in names):
        raise BackendMissing(
            f"{source.name}: torch.compile needs a C++ compiler for the CPU: install {' or '.join(names)}, or name one "
            "in the environment variable CXX"
        )
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").is_file():
        raise BackendMissing(
            f"{source.name}: torch.compile needs Python's headers for the CPU, and {headers} has no Python.h: install "
            "the package that has them (python3-dev or the like)"
        )


def compile_program(program: Program, signature: Signature, options: CompileOptions) -> Program:
    """``program``, to be compiled by the calls that warm it."""
    return CompiledProgram(program, Variants(signature, dynamic=options.dynamic), options)


class CompiledProgram(Wrapped):
    """A program whose network is compiled once for each of its ``variants``.

    Each is compiled as a function of its own. Of several graphs that one function has, torch looks for the one that
    fits in a list which it reorders as it goes: two threads at it at once can miss theirs, and compile it again.
    """

    def __init__(self, inner: Program, variants: Variants, options: CompileOptions) -> None:
        super().__init__(inner)
        self.specializes_on_shape = not options.dynamic
        self._variants = variants
        self._options = options
        # All of it is written under _COMPILING, and read by any thread.
        self._compiled: dict[object, Network] = {}
        self._turn: AbstractContextManager[object] = nullcontext()
        self._codes: list[CodeType] = []
        self._generated: list[ModuleType] = []

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run the network, compiled; the first call of a variant compiles it."""
        variant = self._variants.of(inputs)
        network = self._compiled.get(variant)
        arguments = self.arrange(inputs)
        try:
            if network is None:
                self._variants.mark(inputs)
                return self._compile(variant, arguments)
            with self._turn:
                return network(*arguments.positional, **arguments.keyword)
        except FailOnRecompileLimitHit as exc:
            raise ExecutionFailed(
                f"the network needs more than {torch._dynamo.config.recompile_limit} graphs for inputs of one shape: "
                "what it does depends on more than its inputs; TORCH_LOGS=recompiles shows on what"
            ) from exc

    def keeps(self, tensor: torch.Tensor) -> bool:
        """As the other says; of what is frozen nobody knows where it is."""
        return self._options.freezing or super().keeps(tensor)

    def adopt_thread(self) -> None:
        """Have a network that needs ever more graphs fail, rather than run eagerly in silence.

        The limit must suffice for all variants: where a graph breaks, the model's own functions are compiled for each.
        Until torch 2.12 the settings are the process's: so they are only ever raised.
        """
        super().adopt_thread()
        config = torch._dynamo.config
        config.fail_on_recompile_limit_hit = True
        config.recompile_limit = max(config.recompile_limit, self._variants.count)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, self._variants.count)

    def close(self) -> None:
        """Have torch forget the graphs."""
        with _COMPILING:
            release(self._codes, self._generated)
        super().close()

    def _compile(self, variant: object, arguments: Arguments) -> object:
        with _COMPILING:
            network = self._compiled.get(variant)
            if network is not None:  # by another instance, while this one waited
                return network(*arguments.positional, **arguments.keyword)
            with _compiling(self._options):
                return self._compile_now(variant, arguments)

    def _compile_now(self, variant: object, arguments: Arguments) -> object:
        function = _own_function(self.module)
        # dynamic=False: nothing is dynamic but what is marked so.
        network: Network = torch.compile(
            function, fullgraph=self._options.fullgraph, dynamic=False, options=self._options.inductor
        )
        loaded, breaks = len(generated_modules()), _graph_breaks()
        result = network(*arguments.positional, **arguments.keyword)
        self._codes.append(function.__code__)
        self._generated += generated_modules()[loaded:]
        if _graph_breaks() > breaks:
            # The parts in between are functions of the model's own, and one function for all variants.
            self._turn = threading.Lock()
        self._compiled[variant] = network
        return result


def _graph_breaks() -> int:
    """How many there have been in the process, on any thread: compiling is one at a time."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


@contextmanager
def _compiling(options: CompileOptions) -> Iterator[None]:
    """Set this thread up to compile.

    Options given to torch.compile reach inductor only, but freezing begins in dynamo. And sizes that happen to be equal
    in the first call, say the batch's and the sequence's, must not be taken for one.
    """
    inductor: Any = torch._inductor.config  # to the type checker, neither has patch()
    shapes: Any = torch.fx.experimental._config
    with inductor.patch(options.inductor), shapes.patch(use_duck_shape=False):
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
