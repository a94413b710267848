"""The tensors that a configuration declares: ``input`` and ``output``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from preheat.backend import Dimension, TensorSpec
from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.server_parameters import ServerParameters
from preheat.tensors import DataType

# The schema's names; BYTES is TYPE_STRING there.
_DATATYPES = {"TYPE_STRING" if each is DataType.BYTES else f"TYPE_{each.value}": each for each in DataType}


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A declared tensor as the model has it, and its shape as clients see it where ``reshape`` makes that another."""

    spec: TensorSpec
    client_shape: tuple[Dimension, ...] | None


def read_declarations(
    tensors: Sequence[pb.ModelInput | pb.ModelOutput], kind: str, file: Path, server: ServerParameters
) -> tuple[DeclaredTensor, ...]:
    """The declared tensors; ``kind`` is "input" or "output". Raises InvalidConfig."""
    declared: list[DeclaredTensor] = []
    for position, tensor in enumerate(tensors):
        if not tensor.name:
            raise InvalidConfig(f"{file}: {kind}[{position}]: name: not set")
        where = f"{file}: {kind} '{tensor.name}'"
        if any(each.spec.name == tensor.name for each in declared):
            raise InvalidConfig(f"{where}: declared twice")
        # Engines may choke on empty inputs; what they give may well be empty, such as no detections.
        shape = _shape(tensor, where, server, least=1 if kind == "input" else 0)
        optional = isinstance(tensor, pb.ModelInput) and tensor.optional
        datatype = datatype_of(tensor.data_type, where)
        if tensor.HasField("reshape"):
            model_shape = _reshaped(shape, list(tensor.reshape.shape), where)
            declared.append(DeclaredTensor(TensorSpec(tensor.name, datatype, model_shape, optional), shape))
        else:
            declared.append(DeclaredTensor(TensorSpec(tensor.name, datatype, shape, optional), None))
    return tuple(declared)


def datatype_of(value: int, where: str) -> DataType:
    """Our datatype for the schema's; raises InvalidConfig beginning with ``where``."""
    name = pb.DataType.Name(value) if value in pb.DataType.values() else str(value)
    if name not in _DATATYPES:
        asked = "not set" if value == 0 else name
        raise InvalidConfig(f"{where}: data_type: {asked}; must be one of {', '.join(_DATATYPES)}")
    return _DATATYPES[name]


def datatype_value(datatype: DataType) -> pb.DataType:
    """The schema's value for our datatype."""
    name = next(name for name, ours in _DATATYPES.items() if ours is datatype)
    # The generated stubs type an enum's Value() as a plain int.
    return cast("pb.DataType", pb.DataType.Value(name))


def _shape(
    tensor: pb.ModelInput | pb.ModelOutput, where: str, server: ServerParameters, *, least: int
) -> tuple[Dimension, ...]:
    """The declared dims. ``least`` is the smallest size of a variable dimension without declared bounds."""
    dims, names = list(tensor.dims), server.axis_names.get(tensor.name)
    if not dims:
        raise InvalidConfig(f"{where}: dims: not set; a tensor with one value per row has dims [ 1 ]")
    if names is not None and len(names) != len(dims):
        raise InvalidConfig(f"{where}: preheat.shape names {len(names)} dimensions, dims has {len(dims)}")
    shape: list[Dimension] = []
    for size, name in zip(dims, names or [None] * len(dims), strict=True):
        if size < -1 or size == 0:
            raise InvalidConfig(f"{where}: dims: {size}: must be at least 1, or -1 for a size that varies")
        if size > 0:
            shape.append(Dimension(name, size, size))
        else:
            shape.append(server.dimensions.get(name or "", Dimension(name, least)))
    return tuple(shape)


def _reshaped(shape: Sequence[Dimension], target: Sequence[int], where: str) -> tuple[Dimension, ...]:
    """The model's shape for ``reshape { shape }``: as many elements, and the same variable axes in order."""
    variable = [axis for axis in shape if axis.size is None]
    elements = math.prod(axis.size for axis in shape if axis.size is not None)
    if any(size < -1 or size == 0 for size in target):
        raise InvalidConfig(f"{where}: reshape: {list(target)}: sizes must be at least 1, or -1 for one that varies")
    fits = math.prod(size for size in target if size > 0) == elements and list(target).count(-1) == len(variable)
    if not fits:
        dims = [-1 if axis.size is None else axis.size for axis in shape]
        raise InvalidConfig(
            f"{where}: reshape: {list(target)}: must have the elements and variable sizes of dims {dims}"
        )
    axes = iter(variable)
    return tuple(Dimension.fixed(size) if size > 0 else next(axes) for size in target)
