"""What an ONNX file says of itself: whether its fields end where it does, and which files hold its weights.

Only tags and lengths are read, and what lies between is passed over, so that it takes as long for gigabytes. Numbers
of fields are those of onnx.proto.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

_GRAPH, _OPERATOR_SETS = 7, 8  # of ModelProto; exporters write the latter behind the former
_INITIALIZER = 5  # of GraphProto
_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})  # of TensorProto: values that are in the file itself
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_MOST_TEXT_BYTES = 4096


class _Field(NamedTuple):
    """A field that has a length, and where its content begins and ends in the file."""

    number: int
    begin: int
    end: int


def weights_beside(path: Path) -> Mapping[str, int]:
    """The files that the graph's initializers lie in, by name as written, and how long each has to be in bytes.

    Weights of subgraphs and functions are not looked for. Raises ValueError, saying what is wrong, for what is no whole
    model, and OSError.
    """
    size = path.stat().st_size
    found: set[int] = set()
    lengths: dict[str, int] = {}
    with path.open("rb") as file:
        for field in _fields(file, 0, size):
            found.add(field.number)
            if field.number != _GRAPH:
                continue
            for inner in _fields(file, field.begin, field.end):
                if inner.number == _INITIALIZER:
                    location, end = _external(file, inner)
                    lengths[location] = max(end, lengths.get(location, 0))
    if not found >= {_GRAPH, _OPERATOR_SETS}:
        raise ValueError("it has no graph, or not which operators that is of")
    lengths.pop("", None)
    return lengths


def _external(file: BinaryIO, tensor: _Field) -> tuple[str, int]:
    """Which file an initializer lies in, and up to where; no name if it lies in none."""
    entries: dict[str, str] = {}
    for field in _fields(file, tensor.begin, tensor.end):
        # There may be very many, and such a tensor lies in no other file.
        if field.number in _DATA:
            return "", 0
        if field.number == _EXTERNAL_DATA:
            texts = {each.number: _text(file, each) for each in _fields(file, field.begin, field.end)}
            entries[texts.get(_KEY, "")] = texts.get(_VALUE, "")
    return entries.get("location", ""), int(entries.get("offset", "0")) + int(entries.get("length", "0"))


def _text(file: BinaryIO, field: _Field) -> str:
    if field.end - field.begin > _MOST_TEXT_BYTES:
        raise ValueError(f"where its weights lie takes {field.end - field.begin} bytes to say")
    file.seek(field.begin)
    return file.read(field.end - field.begin).decode()


def _fields(file: BinaryIO, begin: int, end: int) -> Iterator[_Field]:
    """The fields with a length between two places. Raises ValueError unless all end at ``end``.

    Between two of them, the caller may read elsewhere.
    """
    at = begin
    while at < end:
        file.seek(at)
        number, kind = divmod(_read_varint(file), 8)
        if kind not in (0, 1, 2, 5) or not number:
            raise ValueError("it is no ONNX model")
        if kind == 0:
            _read_varint(file)
        length = _read_varint(file) if kind == 2 else {1: 8, 5: 4}.get(kind, 0)
        content = file.tell()
        at = content + length
        if at > end:
            raise ValueError(f"it has {end} bytes, and describes at least {at}")
        if kind == 2:
            yield _Field(number, content, at)


def _read_varint(file: BinaryIO) -> int:
    """A whole number as protobuf writes it (https://protobuf.dev/programming-guides/encoding/#varints)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("it is no ONNX model")
