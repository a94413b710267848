"""``model.pt2``: a program written by ``torch.export.save``, with its weights."""

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils._pytree import tree_unflatten

from preheat.backend import Dimension, ModelSource, Signature
from preheat.errors import InvalidArtifact
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor
from preheat_backends.torch_programs.program import Arguments, NetworkProgram, Storages, first_line
from preheat_backends.torch_tensors import datatype_of

# torch.export.load keeps its state in a global and fails when two threads are in it (seen in torch 2.13).
_LOADING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Call:
    """How a program is called, by the names of its inputs, and where in what it returns its outputs are.

    ``outputs`` are the keys of a dictionary or the places in a tuple; empty for one bare tensor.
    """

    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    outputs: tuple[str, ...] | tuple[int, ...]

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs' own names, or for want of such OUTPUT__0 and on."""
        return tuple(f"OUTPUT__{key}" if isinstance(key, int) else key for key in self.outputs or (0,))

    @property
    def names_outputs(self) -> bool:
        """Whether the program itself names its outputs."""
        return any(isinstance(key, str) for key in self.outputs)


class RunnableProgram(NetworkProgram):
    """An exported program on one device, with the outputs that are asked of it by name."""

    def __init__(self, program: ExportedProgram, call: Call, outputs: Mapping[str, int]) -> None:
        # Each call is held against the program's guards, 0.1 ms of Python: a guard may say what no signature can.
        self._module = program.module()
        self._call = call
        self._outputs = outputs
        self.writes_inputs = _writes(program)
        self._kept = Storages(chain(self._module.parameters(), self._module.buffers(), program.constants.values()))

    @property
    def module(self) -> torch.nn.Module:
        """The graph, with its weights."""
        return self._module

    def arrange(self, inputs: Mapping[str, torch.Tensor]) -> Arguments:
        """As the program was called when it was exported."""
        return Arguments(
            tuple(inputs[name] for name in self._call.positional), {name: inputs[name] for name in self._call.keyword}
        )

    def pick(self, result: Any) -> Mapping[str, torch.Tensor]:
        """The outputs asked for, by the names they are asked for by."""
        values = [result[key] for key in self._call.outputs] if self._call.outputs else [result]
        return {name: values[index] for name, index in self._outputs.items()}

    def keeps(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in a weight or a constant of the graph."""
        return self._kept.hold(tensor)


def load_exported_program(path: Path) -> ExportedProgram:
    """Read the program at ``path``, which runs code of its author's as every file of torch.export may.

    Raises InvalidArtifact.
    """
    try:
        with _LOADING:
            return torch.export.load(path)
    except Exception as exc:
        raise InvalidArtifact(f"{path}: torch.export cannot load it: {first_line(exc)}") from exc


def make_runnable(
    program: ExportedProgram, path: Path, *, source: ModelSource, signature: Signature, device: torch.device
) -> RunnableProgram:
    """Make ``program`` serve ``signature`` on ``device``. Raises InvalidConfig, InvalidArtifact."""
    actual, call = read_signature(program, path)
    actual.check_inputs(source, signature)
    indices = actual.match_outputs(source, signature, by_position=not call.names_outputs)
    values = (node.meta.get("val") for node in program.graph.nodes)
    if any(isinstance(value, torch.Tensor) and value.device != device for value in values):
        program = move_to_device_pass(program, device)
    outputs = {spec.name: index for spec, index in zip(signature.outputs, indices, strict=True)}
    return RunnableProgram(program, call, outputs)


def read_signature(program: ExportedProgram, path: Path) -> tuple[ArtifactSignature, Call]:
    """What ``program`` takes and gives, and how to call it.

    Raises InvalidArtifact for inputs or outputs other than tensors of datatypes that the protocol names.
    """
    call = _read_call(program, path)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    nodes = program.graph_signature
    inputs = zip(call.positional + call.keyword, nodes.user_inputs, strict=True)
    outputs = zip(call.output_names, nodes.user_outputs, strict=True)
    ranges = program.range_constraints
    signature = ArtifactSignature(
        inputs=tuple(_tensor(f"{path}: input", name, values.get(str(node)), ranges) for name, node in inputs),
        outputs=tuple(_tensor(f"{path}: output", name, values.get(str(node)), ranges) for name, node in outputs),
    )
    return signature, call


def _read_call(program: ExportedProgram, path: Path) -> Call:
    """Put each leaf's number where the leaf goes: that shows how arguments and results are nested."""
    nodes, spec = program.graph_signature, program.call_spec
    if spec.in_spec is None or spec.out_spec is None:
        raise InvalidArtifact(f"{path}: the program does not say how it is called; export it again")
    arguments, keywords = tree_unflatten(range(len(nodes.user_inputs)), spec.in_spec)
    if not all(isinstance(leaf, int) for leaf in (*arguments, *keywords.values())):
        raise InvalidArtifact(f"{path}: the program takes nested inputs; each must be one tensor")
    given = program.module_call_graph[0].signature
    names = given.forward_arg_names if given is not None else None
    positional = (names or [str(node) for node in nodes.user_inputs])[: len(arguments)]
    results = tree_unflatten(range(len(nodes.user_outputs)), spec.out_spec)
    return Call(tuple(positional), tuple(keywords), output_keys(results, f"{path}: the program"))


def output_keys(results: Any, subject: str) -> tuple[str, ...] | tuple[int, ...]:
    """Where in ``results``, made of the outputs' numbers, each output is, by their numbers.

    Raises InvalidArtifact, in which ``subject`` returns them, for results that are nested.
    """
    if isinstance(results, int):
        return ()
    if type(results) in (tuple, list) and all(isinstance(leaf, int) for leaf in results):
        return tuple(range(len(results)))
    if isinstance(results, Mapping) and all(
        isinstance(key, str) and isinstance(leaf, int) for key, leaf in results.items()
    ):
        return tuple(sorted(results, key=lambda key: int(results[key])))
    raise InvalidArtifact(
        f"{subject} returns {type(results).__name__} with something nested in it; it must return a tensor, a "
        "tuple or list of tensors, or a dictionary of tensors by name"
    )


def _tensor(where: str, name: str, value: object, ranges: Mapping[Any, Any]) -> ArtifactTensor:
    if not isinstance(value, torch.Tensor):
        raise InvalidArtifact(f"{where} {name!r} is no tensor; a served program takes and returns tensors only")
    datatype = datatype_of(value.dtype)
    if datatype is None:
        raise InvalidArtifact(f"{where} {name!r} is {value.dtype}, which the protocol has no name for")
    return ArtifactTensor(name, datatype, tuple(_dimension(size, ranges) for size in value.shape))


def _dimension(size: int | torch.SymInt, ranges: Mapping[Any, Any]) -> Dimension:
    """A size of the graph: a number, a symbol, a multiple of one, or an expression whose bounds are not followed."""
    if isinstance(size, int):
        return Dimension.fixed(size)
    expression = size.node.expr
    factor, symbol = expression.as_coeff_Mul()
    step = int(factor) if factor.is_Integer and symbol.is_Symbol else 1
    counted = symbol if symbol.is_Symbol else expression
    if counted not in ranges:
        return Dimension(name=str(expression))
    minimum, maximum = _bounds(ranges[counted])
    return Dimension(str(expression), step * minimum, None if maximum is None else step * maximum, multiple_of=step)


def _bounds(bounds: Any) -> tuple[int, int | None]:
    """The bounds of a symbol. Its upper one is some infinity, or about sys.maxsize, if it was given none.

    torch traces every symbol as if it were at least 2 and runs the program with less all the same; of a program
    exported with a lower bound of 1 it keeps no more than that either. So 2 means 1.
    """
    minimum = int(bounds.lower)
    bounded = bounds.upper.is_Integer and int(bounds.upper) < sys.maxsize - 1
    return 1 if minimum == 2 else max(0, minimum), int(bounds.upper) if bounded else None


def _writes(program: ExportedProgram) -> bool:
    """Whether anything in the graph writes to a tensor that it did not make, as far as the operators' schemas say."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    schemas = (getattr(node.target, "_schema", None) for graph in graphs for node in graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)
