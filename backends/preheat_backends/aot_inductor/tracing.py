"""From a model of the eager backend to a program that can be compiled: one graph, called with the inputs in order."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from preheat.backend import Dimension, ModelSource, Signature, TensorSpec
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat_backends.artifacts import Artifact, Kind, find_artifact
from preheat_backends.eager import EagerBackend
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor
from preheat_backends.torch_programs.backend import load_module
from preheat_backends.torch_programs.exported_program import load_exported_program, make_runnable, read_signature
from preheat_backends.torch_programs.program import Program
from preheat_backends.torch_tensors import DTYPES

BATCH = Dimension("batch", 1)


class Served(torch.nn.Module):
    """A network as a package has it: tensors in the order of the signature in, and out.

    With ``dtype`` it computes in that, and speaks the signature's types all the same.
    """

    def __init__(self, program: Program, signature: Signature, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = program.module
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [(spec.name, DTYPES[spec.datatype]) for spec in signature.outputs]
        self._dtype = dtype
        self._program = program

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network."""
        inputs = {name: self._cast(tensor) for name, tensor in zip(self._inputs, tensors, strict=True)}
        arguments = self._program.arrange(inputs)
        outputs = self._program.pick(self.network(*arguments.positional, **arguments.keyword))
        return tuple(self._as_declared(outputs[name], dtype) for name, dtype in self._outputs)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor

    def _as_declared(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(dtype) if self._dtype and tensor.is_floating_point() else tensor


def load_served(source: ModelSource, signature: Signature, dtype: torch.dtype | None) -> tuple[Served, Signature]:
    """The network of ``source`` on its device, and its signature, with the bounds that an exported program has.

    Raises InvalidArtifact, InvalidConfig.
    """
    _refuse_unservable(source, signature)
    artifact = find_artifact(source, EagerBackend.takes)
    device = torch.device(source.device)
    if artifact.kind is Kind.TEXT:
        program = load_module(
            artifact, takes=EagerBackend.takes, signature=signature, device=device,
            prepare=lambda module: module.to(dtype),
        )  # fmt: skip
        return Served(program, signature, dtype).eval(), signature
    return _load_exported(artifact, source, signature, dtype)


def _load_exported(
    artifact: Artifact, source: ModelSource, signature: Signature, dtype: torch.dtype | None
) -> tuple[Served, Signature]:
    if dtype is not None:
        raise InvalidConfig(f"--dtype: {artifact.path} has its types in its graph; export it in this one")
    exported = load_exported_program(artifact.path)
    program = make_runnable(
        exported, artifact.path, source=source, signature=signature, device=torch.device(source.device)
    )
    told = {tensor.name: tensor for tensor in read_signature(exported, artifact.path)[0].inputs}
    bounded = tuple(_bounded(spec, told[spec.name], signature) for spec in signature.inputs)
    signature = replace(signature, inputs=bounded)
    return Served(program, signature, None), signature


def _bounded(spec: TensorSpec, told: ArtifactTensor, signature: Signature) -> TensorSpec:
    """An input with the axes that the program has, which says which are equal."""
    return replace(spec, shape=(told.shape or ())[int(signature.batches) :])


def _refuse_unservable(source: ModelSource, signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.datatype not in DTYPES:
            raise InvalidConfig(
                f"{source.config_path}: tensor {spec.name!r}: torch has no tensors of {spec.datatype.value}"
            )
        if spec.optional:
            raise InvalidConfig(f"{source.config_path}: input {spec.name!r}: optional: a package takes all its inputs")


def whole_shape(spec: TensorSpec, signature: Signature) -> tuple[Dimension, ...]:
    """The axes of a tensor, the batch axis among them."""
    batch = (replace(BATCH, maximum=signature.max_batch_size),) if signature.batches else ()
    return (*batch, *spec.shape)


def make_inputs(signature: Signature, sizes: Mapping[str, int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random inputs; an axis of a name in ``sizes`` has that size. Whole numbers are 0 or 1: there is such a token."""
    dice = torch.Generator().manual_seed(0)
    tensors = []
    for spec in signature.inputs:
        shape = [_size(axis, index, spec, sizes) for index, axis in enumerate(whole_shape(spec, signature))]
        dtype = DTYPES[spec.datatype]
        if dtype.is_floating_point:
            tensor = torch.randn(shape, generator=dice).to(dtype)
        else:
            tensor = torch.randint(0, 2, shape, generator=dice).to(dtype)
        tensors.append(tensor.to(device))
    return tuple(tensors)


def _size(axis: Dimension, index: int, spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    if axis.size is not None:
        return axis.size
    return sizes[axis_name(axis, index, spec)]


def axis_name(axis: Dimension, index: int, spec: TensorSpec) -> str:
    """The name of an axis that varies, made up for one that is tied to no other."""
    return axis.name or f"{spec.name} {index}"


def varying_axes(signature: Signature) -> Mapping[str, Dimension]:
    """The axes that vary, by their names."""
    return {
        axis_name(axis, index, spec): axis
        for spec in signature.inputs
        for index, axis in enumerate(whole_shape(spec, signature))
        if axis.size is None
    }


def dynamic_shapes(signature: Signature) -> tuple[tuple[dict[int, Any], ...]]:
    """Which axes vary, and how far, as torch.export takes it for :class:`Served`."""
    symbols = {
        name: _symbol(axis, f"axis_{number}") for number, (name, axis) in enumerate(varying_axes(signature).items())
    }
    shapes = [
        {
            index: symbols[axis_name(axis, index, spec)]
            for index, axis in enumerate(whole_shape(spec, signature))
            if axis.size is None
        }
        for spec in signature.inputs
    ]
    return (tuple(shapes),)


def _symbol(axis: Dimension, name: str) -> Any:
    step = axis.multiple_of
    symbol = Dim(
        name,
        min=max(1, -(-axis.minimum // step)),
        max=None if axis.maximum is None else axis.maximum // step,
    )
    return symbol if step == 1 else step * symbol


def example_sizes(signature: Signature) -> Mapping[str, int]:
    """Sizes to trace with: not 1, which torch would take for the only one, and no two the same if it can be."""
    return {name: _example(axis, 3 + number) for number, (name, axis) in enumerate(varying_axes(signature).items())}


def _example(axis: Dimension, wanted: int) -> int:
    size = -(-max(axis.minimum, wanted) // axis.multiple_of) * axis.multiple_of
    return size if axis.maximum is None else min(size, axis.maximum // axis.multiple_of * axis.multiple_of)


def trace(served: torch.nn.Module, signature: Signature, device: torch.device) -> ExportedProgram:
    """Export ``served`` for all shapes of ``signature``. Raises InvalidArtifact with torch's reason if it cannot be."""
    inputs = make_inputs(signature, example_sizes(signature), device)
    shapes: Any = dynamic_shapes(signature)
    # Of a graph each argument has a name; those of Served are all one.
    shapes = shapes[0] if isinstance(served, torch.fx.GraphModule) else shapes
    try:
        with torch.no_grad():
            return torch.export.export(served, inputs, dynamic_shapes=shapes)
    except Exception as exc:
        why = textwrap.shorten(f"{type(exc).__name__}: {exc}", 1000)
        raise InvalidArtifact(f"torch.export cannot make one graph of the network: {why}") from exc


def describe(program: ExportedProgram, signature: Signature, names: Sequence[str]) -> ArtifactSignature:
    """What a package of ``program`` takes and gives, its outputs by ``names``."""
    inputs = [ArtifactTensor(spec.name, spec.datatype, whole_shape(spec, signature)) for spec in signature.inputs]
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    # What torch calls an axis, and what it is an axis of.
    symbols: dict[str, Dimension] = {}
    for node, spec in zip(program.graph_signature.user_inputs, signature.inputs, strict=True):
        for index, (size, axis) in enumerate(zip(values[str(node)].shape, whole_shape(spec, signature), strict=True)):
            symbols.setdefault(str(size), replace(axis, name=axis_name(axis, index, spec)))
    outputs = [
        ArtifactTensor(name, tensor.datatype, tuple(symbols.get(axis.name or "", axis) for axis in tensor.shape or ()))
        for name, tensor in zip(names, read_signature(program, Path("the network"))[0].outputs, strict=True)
    ]
    return ArtifactSignature(tuple(inputs), tuple(outputs))
