"""The inputs, outputs and operators of an ONNX file, read off its outline.

ONNX Runtime tells them too, but only once it has built a session, weights and all; and it does not tell a tensor of
unknown rank from a scalar. Here only the names of weights are passed over, and a file of gigabytes takes milliseconds.
The numbers are those of the fields in ONNX's published schema.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from preheat.backend import Dimension
from preheat.errors import InvalidArtifact
from preheat.tensors import DataType
from preheat_backends.artifacts import map_file
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor
from preheat_backends.wire import MalformedMessage, Value, fields

_log = logging.getLogger(__name__)

_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE_INITIALIZER = 1, 5, 11, 12, 15
_FUNCTION_NODE = 7
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_GRAPHS = (6, 11)
_TENSOR_NAME = 8
_SPARSE_VALUES = 1
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_TYPE_ELEMENT, _TENSOR_TYPE_SHAPE = 1, 2
_DIMENSION_VALUE, _DIMENSION_PARAMETER = 1, 2

_OTHER_TYPES = {4: "a sequence", 5: "a map", 7: "opaque", 8: "a sparse tensor", 9: "an optional"}
_ELEMENTS = {
    1: DataType.FP32,
    2: DataType.UINT8,
    3: DataType.INT8,
    4: DataType.UINT16,
    5: DataType.INT16,
    6: DataType.INT32,
    7: DataType.INT64,
    8: DataType.BYTES,
    9: DataType.BOOL,
    10: DataType.FP16,
    11: DataType.FP64,
    12: DataType.UINT32,
    13: DataType.UINT64,
    16: DataType.BF16,
}


class _NotServable(ValueError):
    """A value that no tensor of the protocol can hold."""


def read_signature(path: Path) -> ArtifactSignature:
    """What the model at ``path`` takes and gives.

    Inputs that have an initializer are constants unless someone feeds them, and nobody will: they are left out. So are
    outputs that the protocol has no tensors for, with a warning. Raises InvalidArtifact for such an input, and for a
    file that is no ONNX model.
    """
    with path.open("rb") as file:
        try:
            return _read_graph(_only(map_file(file), _MODEL_GRAPH), path)
        except MalformedMessage as exc:
            raise InvalidArtifact(f"{path}: damaged ONNX model: {exc}") from exc


# These scale what they get by the largest value in it, whichever row that is in.
_SCALED_BY_BATCH = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})


def rows_depend(path: Path) -> bool:
    """Whether a row's answer depends on the others in its batch, by activations that are quantized as they come.

    Raises as :func:`read_operators`.
    """
    return not _SCALED_BY_BATCH.isdisjoint(read_operators(path))


def read_operators(path: Path) -> frozenset[str]:
    """The operators that the model at ``path`` computes with, in branches, loops and functions too.

    Raises InvalidArtifact for a file that is no ONNX model.
    """
    with path.open("rb") as file:
        try:
            return frozenset(_model_operators(map_file(file)))
        except (MalformedMessage, RecursionError) as exc:
            raise InvalidArtifact(f"{path}: damaged ONNX model: {exc}") from exc


def _model_operators(model: memoryview) -> Iterator[str]:
    for number, value in fields(model):
        if number == _MODEL_GRAPH:
            yield from _operators(_message(value), _GRAPH_NODE)
        elif number == _MODEL_FUNCTION:
            yield from _operators(_message(value), _FUNCTION_NODE)


def _operators(parent: memoryview, node_field: int) -> Iterator[str]:
    """The operators of the nodes in ``node_field`` of a graph or function, and of the graphs in their attributes."""
    for number, node in fields(parent):
        if number != node_field:
            continue
        for part, value in fields(_message(node)):
            if part == _NODE_OPERATOR:
                yield _decode(_message(value))
            elif part == _NODE_ATTRIBUTE:
                for kind, content in fields(_message(value)):
                    if kind in _ATTRIBUTE_GRAPHS:
                        yield from _operators(_message(content), _GRAPH_NODE)


def _read_graph(graph: memoryview, path: Path) -> ArtifactSignature:
    constants: set[str] = set()
    inputs: list[memoryview] = []
    outputs: list[memoryview] = []
    for number, value in fields(graph):
        if number == _GRAPH_INITIALIZER:
            constants.add(_text(_message(value), _TENSOR_NAME))
        elif number == _GRAPH_SPARSE_INITIALIZER:
            constants.add(_text(_only(_message(value), _SPARSE_VALUES), _TENSOR_NAME))
        elif number == _GRAPH_INPUT:
            inputs.append(_message(value))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_message(value))
    fed = [value for value in inputs if _text(value, _VALUE_NAME) not in constants]
    return ArtifactSignature(tuple(_read_inputs(fed, path)), tuple(map(_may_be_empty, _read_outputs(outputs, path))))


def _may_be_empty(output: ArtifactTensor) -> ArtifactTensor:
    """An output's sizes are the graph's to choose: nothing found is an answer, too."""
    shape = output.shape and tuple(axis if axis.size is not None else replace(axis, minimum=0) for axis in output.shape)
    return replace(output, shape=shape)


def _read_inputs(values: list[memoryview], path: Path) -> Iterator[ArtifactTensor]:
    for value in values:
        try:
            yield _read_value(value)
        except _NotServable as exc:
            raise InvalidArtifact(f"{path}: input {_text(value, _VALUE_NAME)!r} {exc}") from exc


def _read_outputs(values: list[memoryview], path: Path) -> Iterator[ArtifactTensor]:
    for value in values:
        try:
            yield _read_value(value)
        except _NotServable as exc:
            _log.warning("%s: output %r is not served: it %s", path, _text(value, _VALUE_NAME), exc)


def _read_value(value: memoryview) -> ArtifactTensor:
    name = _text(value, _VALUE_NAME)
    for number, kind in fields(_only(value, _VALUE_TYPE)):
        if number == _TYPE_TENSOR:
            return _read_tensor(name, _message(kind))
        if number in _OTHER_TYPES:
            raise _NotServable(f"is {_OTHER_TYPES[number]}; only tensors are served")
    raise _NotServable("has no type")


def _read_tensor(name: str, tensor: memoryview) -> ArtifactTensor:
    element, shape = 0, None
    for number, value in fields(tensor):
        if number == _TENSOR_TYPE_ELEMENT and isinstance(value, int):
            element = value
        elif number == _TENSOR_TYPE_SHAPE:
            shape = tuple(_read_dimension(_message(axis)) for _, axis in fields(_message(value)))
    if element not in _ELEMENTS:
        raise _NotServable(f"has ONNX element type {element}, which the protocol has no name for")
    return ArtifactTensor(name, _ELEMENTS[element], shape)


def _read_dimension(axis: memoryview) -> Dimension:
    """A size, a symbol or neither.

    A symbol has no bounds in ONNX. Its minimum is 1, not 0: kernels are seldom written for empty axes, and a request
    with one is a client's mistake more often than not.
    """
    for number, value in fields(axis):
        if number == _DIMENSION_VALUE and isinstance(value, int) and value < 1 << 63:
            return Dimension.fixed(value)
        if number == _DIMENSION_PARAMETER and not isinstance(value, int) and len(value):
            return Dimension(name=_decode(value), minimum=1)
    return Dimension(minimum=1)


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise MalformedMessage("a number where a message belongs")
    return value


def _only(message: memoryview, number: int) -> memoryview:
    """The nested message or string of that number; empty if there is none, as protobuf has it."""
    for found, value in fields(message):
        if found == number:
            return _message(value)
    return memoryview(b"")


def _text(message: memoryview, number: int) -> str:
    return _decode(_only(message, number))


def _decode(text: memoryview) -> str:
    return str(text, "utf-8", "replace")
