"""Messages cut into the records they are made of, and put together, past protobuf: raw contents are not copied.

To protobuf, ``raw_input_contents`` and ``raw_output_contents`` are strings like any others: it copies each when it
parses, again into Python, and once more when it writes. On the wire they are plain records of the message's top level
(https://protobuf.dev/programming-guides/encoding), so they can be cut out of it and put to it from outside.
"""

from collections.abc import Sequence
from typing import NamedTuple

# The wire type of a record that begins with its length: the low three bits of its tag.
_DELIMITED = 2
# One byte of a varint carries seven bits; no length that protobuf takes needs more bytes than this.
_MOST_LENGTH_BYTES = 5
_MOST_VARINT_BYTES = 10
_MOST_LENGTH = 2**31 - 1
# More than a request has that means anything. Protobuf is faster at reading millions of records that do not.
_MOST_RECORDS = 1000


class Cut(NamedTuple):
    """A message without the records of two fields: the only one there was of one, and all of the other, as views.

    ``spans`` are where these contents lay: that of the one, empty where there was none, and then those of the other.
    """

    rest: bytes
    only: bytes
    contents: Sequence[memoryview]
    spans: Sequence[tuple[int, int]]


class Layout:
    """Where a message has what the next one like it will differ in; it is compared in all else, and then cut there."""

    __slots__ = ("_fixed", "_only", "_spans")

    def __init__(self, payload: bytes, spans: Sequence[tuple[int, int]]) -> None:
        """``spans`` as in :class:`Cut`."""
        self._only = slice(*spans[0])
        self._spans = tuple(slice(*span) for span in spans[1:])
        edges = [0, *(edge for span in sorted(spans) for edge in span), len(payload)]
        between = zip(edges[::2], edges[1::2], strict=True)
        self._fixed = tuple((slice(start, stop), payload[start:stop]) for start, stop in between if start < stop)

    def cut(self, payload: bytes) -> tuple[bytes, Sequence[memoryview]] | None:
        """The contents of ``payload``, of the same length: the only one, and the others; None if it is not like it."""
        for place, expected in self._fixed:
            if payload[place] != expected:
                return None
        view = memoryview(payload)
        return payload[self._only], [view[span] for span in self._spans]


class _Odd(Exception):
    """Something that only protobuf is to judge."""


def cut(payload: bytes, *, only: int, contents: int) -> Cut | None:
    """Cut the length-delimited records of two fields, below 16, out of a message's bytes.

    None where the bytes hold anything but the plain records that every encoder writes: protobuf then has to say what
    the message is, or that it is none. ``rest`` needs parsing, and ``only`` is still to be held against UTF-8 where it
    is a string; together they say what the whole would.
    """
    try:
        return _cut(payload, only << 3 | _DELIMITED, contents << 3 | _DELIMITED)
    except (_Odd, IndexError):
        return None


def _cut(payload: bytes, only_tag: int, contents_tag: int) -> Cut:
    view = memoryview(payload)
    end = len(payload)
    kept: list[memoryview] = []
    contents: list[memoryview] = []
    spans: list[tuple[int, int]] = []
    only: tuple[int, int] | None = None
    position = keep_from = 0
    for _ in range(_MOST_RECORDS):
        if position == end:
            kept.append(view[keep_from:])
            spans.insert(0, (0, 0) if only is None else only)
            return Cut(b"".join(kept), payload[slice(*spans[0])], contents, spans)
        tag = payload[position]
        start = position + 2
        stop = start + payload[position + 1]
        # What most records are: with a length below 128.
        if tag & 7 != _DELIMITED or stop - start > 0x7F or not 8 <= tag < 0x80:
            start, stop = _record(payload, position)
        if stop > end:
            break
        if tag in (contents_tag, only_tag):
            if position > keep_from:
                kept.append(view[keep_from:position])
            keep_from = stop
            if tag == contents_tag:
                contents.append(view[start:stop])
                spans.append((start, stop))
            elif only is None:
                only = start, stop
            else:
                break
        position = stop
    raise _Odd


def _record(payload: bytes, position: int) -> tuple[int, int]:
    """Where the content of the record at ``position`` begins and ends; the end may lie beyond the message's."""
    tag = payload[position]
    if not 8 <= tag < 0x80:  # field 0, which there is not, and fields above 15, which the messages do not have
        raise _Odd
    start = position + 1
    match tag & 7:
        case 0:  # VARINT
            return start, _skip_varint(payload, start)
        case 1:  # I64
            return start, start + 8
        case 2:  # LEN
            return _delimited(payload, start)
        case 5:  # I32
            return start, start + 4
        case _:  # groups, and what is no wire type
            raise _Odd


def _delimited(payload: bytes, position: int) -> tuple[int, int]:
    length = shift = 0
    for start in range(position, position + _MOST_LENGTH_BYTES):
        byte = payload[start]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if length > _MOST_LENGTH:
                break
            return start + 1, start + 1 + length
        shift += 7
    raise _Odd


def _skip_varint(payload: bytes, position: int) -> int:
    for stop in range(position, position + _MOST_VARINT_BYTES):
        if payload[stop] < 0x80:
            return stop + 1
    raise _Odd


def header(field: int, length: int) -> bytes:
    """What a length-delimited record of ``field``, below 16, begins with."""
    if length < 0x80:
        return bytes((field << 3 | _DELIMITED, length))
    begun = bytearray((field << 3 | _DELIMITED,))
    while length > 0x7F:
        begun.append(length & 0x7F | 0x80)
        length >>= 7
    begun.append(length)
    return bytes(begun)
