"""The inputs and outputs of a model that OpenVINO reads, and which of its ports each tensor of a signature is."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from preheat.backend import Dimension
from preheat.errors import InvalidArtifact
from preheat.tensors import DataType
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor

_ELEMENTS = {
    "boolean": DataType.BOOL,
    "u8": DataType.UINT8,
    "u16": DataType.UINT16,
    "u32": DataType.UINT32,
    "u64": DataType.UINT64,
    "i8": DataType.INT8,
    "i16": DataType.INT16,
    "i32": DataType.INT32,
    "i64": DataType.INT64,
    "f16": DataType.FP16,
    "f32": DataType.FP32,
    "f64": DataType.FP64,
    "bf16": DataType.BF16,
}


def read_ports(model: Any, path: Path, *, declared: Collection[str] = ()) -> ArtifactSignature:
    """What ``model``, read from ``path``, takes and gives, in the order of its ports.

    A tensor may have several names: the one that is among ``declared`` counts, else the first. Inputs without any are
    INPUT__0 and on, by their place, outputs OUTPUT__0. Raises InvalidArtifact for a tensor of a type that the protocol
    has no name for, strings among them.
    """
    return ArtifactSignature(
        inputs=tuple(
            _tensor(port, f"INPUT__{place}", f"{path}: input", declared=declared, minimum=1)
            for place, port in enumerate(model.inputs)
        ),
        outputs=tuple(
            _tensor(port, f"OUTPUT__{place}", f"{path}: output", declared=declared, minimum=0)
            for place, port in enumerate(model.outputs)
        ),
    )


def names_outputs(model: Any) -> bool:
    """Whether any of the outputs has a name of its own."""
    return any(port.get_names() for port in model.outputs)


def find_ports(ports: Sequence[Any], names: Sequence[str], prefix: str) -> tuple[int, ...]:
    """For each of ``names``, at which of ``ports`` it is. KeyError for a name that is at none."""
    places = {name: place for place, port in enumerate(ports) for name in port.get_names() or {f"{prefix}{place}"}}
    return tuple(places[name] for name in names)


def _tensor(port: Any, position: str, where: str, *, declared: Collection[str], minimum: int) -> ArtifactTensor:
    name = _name(port, declared) or position
    element = port.element_type.get_type_name()
    if element not in _ELEMENTS:
        raise InvalidArtifact(
            f"{where} {name!r} is of OpenVINO's type {element!r}; the backend 'openvino' serves "
            f"{', '.join(datatype.value for datatype in _ELEMENTS.values())}"
        )
    return ArtifactTensor(name, _ELEMENTS[element], _shape(port.partial_shape, minimum))


def _name(port: Any, declared: Collection[str]) -> str | None:
    names = sorted(port.get_names())
    return next((name for name in names if name in declared), names[0] if names else None)


def _shape(shape: Any, minimum: int) -> tuple[Dimension, ...] | None:
    if shape.rank.is_dynamic:
        return None
    return tuple(_dimension(axis, minimum) for axis in shape)


def _dimension(axis: Any, minimum: int) -> Dimension:
    """A size or bounds. An input that may be empty as far as the model says is at least ``minimum``, as with ONNX."""
    if axis.is_static:
        return Dimension.fixed(axis.get_length())
    most = axis.get_max_length()
    return Dimension(minimum=max(minimum, axis.get_min_length()), maximum=None if most < 0 else most)
