"""Graphs that outlive the process: a later load runs them without tracing, which is most of what a warm start takes.

dynamo's tracing finds out which graph a network is, and inductor's cache then has its kernels. The tracing alone takes
seconds of Python for a network of some size, in which all else in the process waits for the interpreter's lock. What
it finds is the same each time, as long as all that it depends on is: that is what is checked here instead. A graph is
kept only if it is the whole network, and was seen to give the answers that tracing gave.
"""

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
import torch._inductor.select_algorithm  # for what was generated, which imports it: not when a model is being loaded
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable

from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat_backends.torch_compile.cache import caching_in, count_binaries
from preheat_backends.torch_compile.fingerprint import (
    Indescribable,
    describe_module,
    describe_sources,
    digest_of,
    tell,
)
from preheat_backends.torch_compile.generated import generated_modules, release, using_bytecode, write_bytecode
from preheat_backends.torch_programs.program import Arguments
from preheat_backends.torch_programs.python_module import IMPORTED

# An input's name as dynamo has it, and a global's: how to get at it from a call's locals, and from an imported module.
_ARGUMENT = re.compile(r"L\['(args|kwargs)'\]\[('?)(\w+)\2\]")
_GLOBAL = re.compile(r"G\['__import_(\w+)'\](.*)")
log = logging.getLogger(__name__)

_LOCALS = {"getattr": getattr, "list": list, "dict": dict, "tuple": tuple, "type": type}


class CannotKeep(Exception):
    """Why a graph has to be traced again at each load."""


class Picked(dict[str, torch.Tensor]):
    """Outputs by the signature's names, from a graph that knows them."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What dynamo found: ``inputs`` are the graph's, by dynamo's names for where they come from.

    ``code`` is what it looked at. ``call`` is the compiled graph, from a list of inputs to a list of outputs;
    ``outputs`` those of its first run. ``constants`` is what it took from global variables, by name, and ``generated``
    the modules that inductor made for it.
    """

    inputs: Sequence[str]
    code: Sequence[CodeType]
    call: Callable[..., Sequence[torch.Tensor]]
    outputs: Sequence[torch.Tensor]
    constants: Mapping[str, object]
    generated: Sequence[ModuleType]


@dataclass(frozen=True, slots=True)
class _Record:
    """What is written beside a graph. ``outputs`` says which of the graph's each of the signature's is.

    ``module``, ``sources`` and ``constants`` have to be as they were, or the graph is not what tracing would find.
    """

    inputs: Sequence[str]
    outputs: Mapping[str, int]
    module: str
    sources: Mapping[str, str]
    constants: Sequence[tuple[str, str, str]]


class KeptGraphs:
    """The graphs of one model, in the folder of the compile cache that is its own: ``cache``.

    ``artifact`` is the folder whose content the cache is found by. The caller holds dynamo's lock.
    """

    def __init__(self, cache: Path, artifact: Path) -> None:
        self._cache = cache
        self._folder = cache / "graphs"
        self._artifact = artifact
        # A graph that was found does not change the module; after tracing, it has to be looked at again.
        self._description: str | None = None

    def describe(self, module: torch.nn.Module) -> str:
        """What ``module`` is now. Raises Indescribable."""
        if self._description is None:
            self._description = describe_module(module)
        return self._description

    def find(self, variant: object, module: torch.nn.Module, what: str) -> "KeptNetwork | None":
        """The graph of ``module`` for inputs of the kind ``variant``, which ``what`` describes; None if there is none.

        Reports it as a compilation.
        """
        path = self._path(variant)
        try:
            told = json.loads(path.with_suffix(".json").read_text())
            record = _Record(**told)
            if not self._still_true(record, module):
                return None
            started_s = time.perf_counter()
            with caching_in(self._cache, complete=False), using_bytecode():
                before, known = count_binaries(self._cache), generated_modules()
                call = _deserialize(path.with_suffix(".graph").read_bytes())
                cached = count_binaries(self._cache) == before
            generated = [each for each in generated_modules() if each not in known]
            network = KeptNetwork(call, record.inputs, record.outputs, module, generated)
        except FileNotFoundError:
            return None
        except Exception as exc:  # whatever is in the file, or torch's way of reading it: it can be made again
            log.warning("%s: a kept graph cannot be used, it is traced: %s", what, exc)
            return None
        seconds = time.perf_counter() - started_s
        report_compilation(Compilation(CompilationKind.GRAPH, what, seconds=seconds, cached=cached))
        return network

    def keep(
        self,
        variant: object,
        module: torch.nn.Module,
        before: str,
        traced: Traced,
        arguments: Arguments,
        outputs: Mapping[str, torch.Tensor],
    ) -> None:
        """Write down what tracing found. ``before`` describes the module before it ran, ``outputs`` are what it gave.

        Raises CannotKeep, and OSError.
        """
        self._description = None
        try:
            if self.describe(module) != before:
                raise CannotKeep("running it changes it")
            record = _Record(
                inputs=traced.inputs,
                outputs={name: _place(name, output, traced.outputs) for name, output in outputs.items()},
                module=before,
                sources=describe_sources(traced.code, self._artifact),
                constants=[_constant(name, value) for name, value in traced.constants.items()],
            )
        except Indescribable as exc:
            raise CannotKeep(str(exc)) from exc
        if not self._still_true(record, module):
            raise CannotKeep("running it changes what it depends on, or that cannot be found again")
        again = KeptNetwork(traced.call, record.inputs, record.outputs, module, [])(arguments)
        if any(not _equal(again[name], output) for name, output in outputs.items()):
            raise CannotKeep("it gives another answer each time")
        if getattr(traced.call, "serialize", None) is None:
            raise CannotKeep("torch cannot write down graphs of its kind")
        try:
            data = BundledAOTAutogradSerializableCallable.serialize_compile_artifacts(
                BundledAOTAutogradSerializableCallable(traced.call)
            )
        except Exception as exc:  # whatever pickle meets in there
            raise CannotKeep(f"torch cannot write it down: {exc}") from exc
        path = self._path(variant)
        path.parent.mkdir(exist_ok=True)
        write_bytecode(traced.generated)
        path.with_suffix(".graph").write_bytes(data)
        path.with_suffix(".json").write_text(json.dumps(asdict(record)))

    def _path(self, variant: object) -> Path:
        return self._folder / hashlib.sha256(repr(variant).encode()).hexdigest()[:32]

    def _still_true(self, record: _Record, module: torch.nn.Module) -> bool:
        return (
            all(digest_of(Path(name)) == digest for name, digest in record.sources.items())
            and all(_value(module, owner, rest) == value for owner, rest, value in record.constants)
            and self.describe(module) == record.module
        )


class KeptNetwork:
    """A graph that stands for a whole network. Several threads may call it.

    ``inputs`` are what it takes, by dynamo's names; ``outputs`` says which of its own each of the signature's is.
    """

    def __init__(
        self,
        call: Callable[..., Sequence[torch.Tensor]],
        inputs: Sequence[str],
        outputs: Mapping[str, int],
        module: torch.nn.Module,
        generated: Sequence[ModuleType],
    ) -> None:
        """Raises CannotKeep where an input cannot be had."""
        self._call = call
        self._outputs = outputs
        self._generated = generated
        self._inputs: list[torch.Tensor | None] = [None] * len(inputs)
        self._positions: list[tuple[int, str, str]] = []
        for index, name in enumerate(inputs):
            argument = _ARGUMENT.fullmatch(name)
            if argument:
                self._positions.append((index, argument[1], argument[3]))
            else:
                self._inputs[index] = _weight(module, name)

    def __call__(self, arguments: Arguments) -> Picked:
        """Run it."""
        inputs = list(self._inputs)
        for index, kind, name in self._positions:
            value = arguments.keyword[name] if kind == "kwargs" else arguments.positional[int(name)]
            inputs[index] = value.contiguous()
        results = self._call(*inputs)
        return Picked({name: results[index] for name, index in self._outputs.items()})

    def close(self) -> None:
        """Have torch forget the modules that were generated for it."""
        release([], self._generated)
        self._inputs.clear()


def _deserialize(data: bytes) -> Callable[..., Sequence[torch.Tensor]]:
    inductor: Any = torch._inductor.config  # to the type checker, it has no patch()
    with inductor.patch(enable_autograd_for_aot=True):
        call: Callable[..., Sequence[torch.Tensor]] = (
            BundledAOTAutogradSerializableCallable.deserialize_compile_artifacts(data)
        )
        return call


def _place(name: str, output: torch.Tensor, outputs: Sequence[torch.Tensor]) -> int:
    for index, each in enumerate(outputs):
        if each is output:
            return index
    raise CannotKeep(f"output {name!r} is not computed by the graph")


def _weight(module: torch.nn.Module, name: str) -> torch.Tensor:
    """What dynamo calls ``name``, among what ``module`` is made of."""
    if not name.startswith("L['module']"):
        raise CannotKeep(f"an input is {name}")
    try:
        value = eval(name, {"__builtins__": _LOCALS}, {"L": {"module": module}})  # noqa: S307 - from our own files
    except Exception as exc:
        raise CannotKeep(f"an input is {name}") from exc
    if not isinstance(value, torch.Tensor):
        raise CannotKeep(f"an input is {name}, a {type(value).__name__}")
    return value


def _constant(name: str, value: object) -> tuple[str, str, str]:
    """The imported module that a global is found in, empty for the model's own; the rest of its name; its value."""
    found = _GLOBAL.fullmatch(name)
    if found is None:
        raise CannotKeep(f"it depends on {name}")
    owner = found[1].replace("_dot_", ".")
    return "" if owner.startswith(IMPORTED) else owner, found[2], tell(value)


def _value(module: torch.nn.Module, owner: str, rest: str) -> str | None:
    """The value that a global has now."""
    imported = sys.modules.get(owner) if owner else _own_code(module)
    if imported is None:
        return None
    try:
        value = eval(f"imported{rest}", {"__builtins__": _LOCALS}, {"imported": imported})  # noqa: S307 - our own files
    except Exception:  # it has no such thing any more
        return None
    return tell(value)


def _own_code(module: torch.nn.Module) -> ModuleType | None:
    names = {type(submodule).__module__ for submodule in module.modules()}
    return next((sys.modules.get(name) for name in names if name.startswith(IMPORTED)), None)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
