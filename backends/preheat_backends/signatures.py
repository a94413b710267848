"""What an artifact takes and gives, and whether it can serve the signature that the server asks of it.

The server has held the configuration against what :meth:`Backend.complete` said. This is the backend's own check, at
load, against what it has in its hands: a file may change between the two, and a tensor whose rank an artifact leaves
open cannot be told to the server at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from preheat.backend import Dimension, ModelSource, PartialConfig, Signature, TensorSpec
from preheat.errors import InvalidConfig
from preheat.tensors import DataType


@dataclass(frozen=True, slots=True)
class ArtifactTensor:
    """An input or output as the artifact has it. ``shape`` is whole; None means that its rank is unknown."""

    name: str
    datatype: DataType
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        shape = "of any shape" if self.shape is None else _list(self.shape)
        return f"{self.name!r} {self.datatype.value} {shape}"


@dataclass(frozen=True, slots=True)
class ArtifactSignature:
    """All inputs and outputs of an artifact, in its order."""

    inputs: tuple[ArtifactTensor, ...]
    outputs: tuple[ArtifactTensor, ...]

    def partial_config(self) -> PartialConfig:
        """What the server can be told. Tensors of unknown rank have to be declared, with all others on their side."""
        return PartialConfig(inputs=_specs(self.inputs), outputs=_specs(self.outputs))

    def check_inputs(self, source: ModelSource, signature: Signature) -> None:
        """Raise InvalidConfig unless ``signature`` declares exactly these inputs."""
        declared = {spec.name: spec for spec in signature.inputs}
        for name in declared.keys() - {tensor.name for tensor in self.inputs}:
            raise _refuse(source, f"input {name!r}: no such input", self.inputs)
        for tensor in self.inputs:
            if tensor.name not in declared:
                raise _refuse(source, f"input {tensor.name!r}: not declared", self.inputs)
            if declared[tensor.name].optional:
                raise _refuse(source, f"input {tensor.name!r}: cannot be optional", self.inputs)
            _check_tensor(source, "input", declared[tensor.name], tensor, signature)

    def match_outputs(self, source: ModelSource, signature: Signature, *, by_position: bool) -> tuple[int, ...]:
        """For each output of ``signature``, which of these it is.

        Matched by name; ``by_position``, if the names here are made up, also a list of other names of the same length.
        Raises InvalidConfig for an output that is not here.
        """
        names = [tensor.name for tensor in self.outputs]
        unknown = [spec.name for spec in signature.outputs if spec.name not in names]
        if unknown and not (by_position and len(signature.outputs) == len(names)):
            raise _refuse(source, f"output {unknown[0]!r}: no such output", self.outputs)
        indices = tuple(range(len(names)) if unknown else (names.index(spec.name) for spec in signature.outputs))
        for index, spec in zip(indices, signature.outputs, strict=True):
            _check_tensor(source, "output", spec, self.outputs[index], signature)
        return indices


def _specs(tensors: tuple[ArtifactTensor, ...]) -> tuple[TensorSpec, ...]:
    specs = tuple(
        TensorSpec(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors if tensor.shape is not None
    )
    return specs if len(specs) == len(tensors) else ()


def _check_tensor(
    source: ModelSource, side: str, spec: TensorSpec, tensor: ArtifactTensor, signature: Signature
) -> None:
    if spec.datatype is not tensor.datatype:
        raise _refuse(source, f"{side} {spec.name!r}: {spec.datatype.value}", (tensor,))
    if tensor.shape is None:
        return
    batch = (Dimension(minimum=1, maximum=signature.max_batch_size),) if signature.batches else ()
    if len(batch) + len(spec.shape) != len(tensor.shape):
        raise _refuse(source, f"{side} {spec.name!r}: {_list(batch + spec.shape)}", (tensor,))
    if batch and not (tensor.shape[0].allows(1) and tensor.shape[0].allows(signature.max_batch_size)):
        raise _refuse(source, f"{side} {spec.name!r}: batches of 1 to {signature.max_batch_size}", (tensor,))
    axes = zip(spec.shape, tensor.shape[len(batch) :], strict=True)
    if not all(_overlap(declared, actual) for declared, actual in axes):
        raise _refuse(source, f"{side} {spec.name!r}: {_list(batch + spec.shape)}", (tensor,))


def _overlap(one: Dimension, other: Dimension) -> bool:
    """Whether some size may be within the bounds of both."""
    for size, dimension in ((one.size, other), (other.size, one)):
        if size is not None:
            return dimension.allows(size)
    above = other.maximum is None or one.minimum <= other.maximum
    return above and (one.maximum is None or other.minimum <= one.maximum)


def _refuse(source: ModelSource, what: str, actual: Sequence[ArtifactTensor]) -> InvalidConfig:
    has = ", ".join(map(str, actual)) or "none"
    return InvalidConfig(f"{source.config_path}: {what}; the artifact in {source.version_path} has {has}")


def _list(shape: tuple[Dimension, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
