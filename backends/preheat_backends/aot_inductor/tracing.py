"""From a model of the eager backend to a program that can be compiled: one graph, called with the inputs in order."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from preheat.backend import Dimension, ModelSource, Signature, TensorSpec
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat_backends.artifacts import Artifact, Kind, find_artifact
from preheat_backends.eager import EagerBackend
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor
from preheat_backends.torch_programs.backend import load_module
from preheat_backends.torch_programs.dynamic_shapes import (
    axis_name,
    dynamic_shapes,
    example_sizes,
    sized,
    whole_shape,
)
from preheat_backends.torch_programs.exported_program import load_exported_program, make_runnable, read_signature
from preheat_backends.torch_programs.program import NetworkProgram
from preheat_backends.torch_tensors import DTYPES


class Served(torch.nn.Module):
    """A network as a package has it: tensors in the order of the signature in, and out.

    With ``dtype`` it computes in that, and speaks the signature's types all the same.
    """

    def __init__(self, program: NetworkProgram, signature: Signature, dtype: torch.dtype | None) -> None:
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


def make_inputs(signature: Signature, sizes: Mapping[str, int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random inputs; an axis of a name in ``sizes`` has that size. Whole numbers are 0 or 1: there is such a token."""
    dice = torch.Generator().manual_seed(0)
    tensors = []
    for spec in signature.inputs:
        shape = sized(spec, signature, sizes)
        dtype = DTYPES[spec.datatype]
        if dtype.is_floating_point:
            tensor = torch.randn(shape, generator=dice).to(dtype)
        else:
            tensor = torch.randint(0, 2, shape, generator=dice).to(dtype)
        tensors.append(tensor.to(device))
    return tuple(tensors)


def trace(served: torch.nn.Module, signature: Signature, device: torch.device) -> ExportedProgram:
    """Export ``served`` for all shapes of ``signature``. Raises InvalidArtifact with torch's reason if it cannot be."""
    inputs = make_inputs(signature, example_sizes(signature), device)
    by_place = tuple(dynamic_shapes(signature).values())
    # Of a graph each argument has a name; those of Served are all one.
    shapes: Any = by_place if isinstance(served, torch.fx.GraphModule) else (by_place,)
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
