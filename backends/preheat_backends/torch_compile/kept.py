"""Graphs that outlive the process: a later load runs them without tracing, which is most of what a warm start takes.

dynamo's tracing finds out which graph a network is, and inductor's cache then has its kernels. The tracing alone takes
seconds of Python for a network of some size, in which all else in the process waits for the interpreter's lock. What
it finds is the same each time, as long as all that it depends on is: that is what is checked here instead. A graph is
kept only if it is the whole network, and was seen to give the answers that tracing gave.
"""

import hashlib
import json
import logging
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
)
from preheat_backends.torch_compile.generated import generated_modules, release, using_bytecode, write_bytecode
from preheat_backends.torch_compile.names import (
    Argument,
    Constant,
    Unnamed,
    argument_named,
    constant_named,
    holds,
    weight_named,
)
from preheat_backends.torch_programs.program import Arguments

log = logging.getLogger(__name__)


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
class Run:
    """The run that traced it: what described the module ``before``, and what it was given and gave."""

    before: str
    arguments: Arguments
    outputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Record:
    """What is written beside a graph. ``outputs`` says which of the graph's each of the signature's is.

    ``module``, ``sources`` and ``constants`` have to be as they were, or the graph is not what tracing would find.
    """

    inputs: Sequence[str]
    outputs: Mapping[str, int]
    module: str
    sources: Mapping[str, str]
    constants: Sequence[Constant]


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
        known = generated_modules()
        try:
            told = json.loads(path.with_suffix(".json").read_text())
            record = _Record(**{**told, "constants": [Constant(*each) for each in told["constants"]]})
            if not self._still_true(record, module):
                log.info("%s: what the kept graph depends on has changed, it is traced", what)
                return None
            started_s = time.perf_counter()
            with caching_in(self._cache, on_cpu=True, complete=False), using_bytecode():
                before = count_binaries(self._cache)
                call = _deserialize(path.with_suffix(".graph").read_bytes())
                cached = count_binaries(self._cache) == before
            network = KeptNetwork(call, record, module, _new(known))
        except FileNotFoundError:
            return None
        except Exception as exc:  # whatever is in the file, or torch's way of reading it: it can be made again
            log.warning("%s: a kept graph cannot be used, it is traced: %s", what, exc)
            release([], _new(known))
            return None
        seconds = time.perf_counter() - started_s
        report_compilation(Compilation(CompilationKind.GRAPH, what, seconds=seconds, cached=cached))
        return network

    def look_again(self) -> None:
        """The module may have changed: what :meth:`describe` said of it is not true any more."""
        self._description = None

    def keep(self, variant: object, module: torch.nn.Module, traced: Traced, run: Run) -> None:
        """Write down what tracing found in ``run``. Raises CannotKeep, and OSError."""
        self.look_again()
        if self.describe(module) != run.before:
            raise CannotKeep("running it changes it")
        try:
            record = self._record(traced, run)
            if not self._still_true(record, module):
                raise CannotKeep("running it changes what it depends on, or that cannot be found again")
        except (Indescribable, Unnamed) as exc:
            raise CannotKeep(str(exc)) from exc
        again = KeptNetwork(traced.call, record, module, [])(run.arguments)
        if any(not _equal(again[name], output) for name, output in run.outputs.items()):
            raise CannotKeep("it gives another answer each time")
        data = _serialize(traced.call)
        write_bytecode(traced.generated)
        path = self._path(variant)
        path.parent.mkdir(exist_ok=True)
        # What is there speaks of another graph, and is not to be found beside this one should the disk be full.
        path.with_suffix(".json").unlink(missing_ok=True)
        path.with_suffix(".graph").write_bytes(data)
        path.with_suffix(".json").write_text(json.dumps(asdict(record)))

    def _record(self, traced: Traced, run: Run) -> _Record:
        return _Record(
            inputs=traced.inputs,
            outputs={name: _place(name, output, traced.outputs) for name, output in run.outputs.items()},
            module=run.before,
            sources=describe_sources(traced.code, self._artifact),
            constants=[constant_named(name, value) for name, value in traced.constants.items()],
        )

    def _path(self, variant: object) -> Path:
        return self._folder / hashlib.sha256(repr(variant).encode()).hexdigest()[:32]

    def _still_true(self, record: _Record, module: torch.nn.Module) -> bool:
        return (
            all(digest_of(Path(name)) == digest for name, digest in record.sources.items())
            and all(holds(constant, module) for constant in record.constants)
            and self.describe(module) == record.module
        )


class KeptNetwork:
    """A graph that stands for a whole network. Several threads may call it, until it is closed."""

    def __init__(
        self,
        call: Callable[..., Sequence[torch.Tensor]],
        record: _Record,
        module: torch.nn.Module,
        generated: Sequence[ModuleType],
    ) -> None:
        """``generated`` are the modules it brought along. Raises Unnamed where an input cannot be had."""
        self._call: Callable[..., Sequence[torch.Tensor]] | None = call
        self._outputs = record.outputs
        self._generated = generated
        self._inputs: list[torch.Tensor | None] = [None] * len(record.inputs)
        self._positions: list[tuple[int, Argument]] = []
        for index, name in enumerate(record.inputs):
            argument = argument_named(name)
            if argument:
                self._positions.append((index, argument))
            else:
                self._inputs[index] = weight_named(name, module)

    def __call__(self, arguments: Arguments) -> Picked:
        """Run it."""
        assert self._call is not None, "called after close"  # noqa: S101 - for the type checker
        inputs = list(self._inputs)
        for index, (kind, name) in self._positions:
            value = arguments.keyword[name] if kind == "kwargs" else arguments.positional[int(name)]
            inputs[index] = value.contiguous()
        results = self._call(*inputs)
        return Picked({name: results[index] for name, index in self._outputs.items()})

    def close(self) -> None:
        """Let go of the weights, and have torch forget the modules that were generated for it."""
        release([], self._generated)
        self._call = None
        self._inputs.clear()


def _new(known: Sequence[ModuleType]) -> list[ModuleType]:
    """The modules that inductor has generated and loaded since there were ``known``."""
    return [each for each in generated_modules() if each not in known]


def _serialize(call: Callable[..., Sequence[torch.Tensor]]) -> bytes:
    if getattr(call, "serialize", None) is None:
        raise CannotKeep("torch cannot write down graphs of its kind")
    try:
        data: bytes = BundledAOTAutogradSerializableCallable.serialize_compile_artifacts(
            BundledAOTAutogradSerializableCallable(call)
        )
    except Exception as exc:  # whatever pickle meets in there
        raise CannotKeep(f"torch cannot write it down: {exc}") from exc
    return data


def _deserialize(data: bytes) -> Callable[..., Sequence[torch.Tensor]]:
    inductor: Any = torch._inductor.config  # to the type checker, it has no patch()
    # The graph was compiled for inference, but torch reads it back only where this is on.
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


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
