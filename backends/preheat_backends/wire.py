"""Protobuf's wire format, walked without a schema.

Enough to read the outline of a large message (an ONNX model of gigabytes) in milliseconds: what is not asked for is
stepped over, never copied or even paged in.
"""

from collections.abc import Iterator
from typing import TypeAlias

# A varint or fixed-size number, or the bytes of a string or nested message.
Value: TypeAlias = int | memoryview

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10


class MalformedMessage(ValueError):
    """The bytes are no protobuf message."""


class CutShort(MalformedMessage):
    """A field says it is longer than what is left. ``field`` is its number."""

    def __init__(self, field: int) -> None:
        super().__init__(f"field {field} ends beyond its message")
        self.field = field


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of ``message``: number and value, in the order they were written.

    Raises MalformedMessage on reaching bytes that cannot be a field; what came before them was yielded.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position, field=0)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise MalformedMessage("a field of number 0")
        if wire_type == _VARINT:
            value, position = _varint(message, position, field=number)
            yield number, value
            continue
        if wire_type == _DELIMITED:
            length, position = _varint(message, position, field=number)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise MalformedMessage(f"field {number} of wire type {wire_type}")
        if length > len(message) - position:
            raise CutShort(number)
        content = message[position : position + length]
        position += length
        yield number, content if wire_type == _DELIMITED else int.from_bytes(content, "little")


def _varint(message: memoryview, position: int, *, field: int) -> tuple[int, int]:
    """The variable-length integer at ``position``, and where it ends."""
    value = 0
    for index in range(_VARINT_BYTES):
        if position + index >= len(message):
            raise CutShort(field)
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise MalformedMessage(f"field {field}: an integer of more than {_VARINT_BYTES} bytes")
