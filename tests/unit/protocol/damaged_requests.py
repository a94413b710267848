"""ModelInferRequests that are right, nearly right, or damaged in ways in which a message can be."""

from collections.abc import Callable, Sequence
from random import Random

from tests.unit.protocol.wire_records import FIXED32, FIXED64, VARINT, Record, RecordWriter

_NAMES = (b"x", b"y", b"", b"INPUT0", "é".encode(), b"a\0b", b"n" * 40)
# They are not UTF-8, or have no typed contents, or are none.
_ODD_NAMES = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80")
_ODD_DATATYPES = (b"FP16", b"BF16", b"", b"fp32", b"FP8", b"BYTES ")
# The field of typed contents that each datatype goes into.
_FIELDS = {
    b"BOOL": 1, b"INT8": 2, b"INT16": 2, b"INT32": 2, b"INT64": 3, b"UINT8": 4, b"UINT16": 4, b"UINT32": 4,
    b"UINT64": 5, b"FP32": 6, b"FP64": 7, b"BYTES": 8,
}  # fmt: skip
_SIZES = (0, 1, 1, 2, 3, -1, 2**31, 2**63 - 1, -(2**63))
_INTEGERS = (0, 1, -1, 127, 128, 255, 256, -129, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**64 - 1)
_KEYS = (b"priority", b"k", b"", b"triton_x")
_EXTENSIONS = (b"shared_memory_region", b"classification")


def damaged_request(dice: Random) -> bytes:
    """The next request of ``dice``. About a third are right, a third break the rules, a third do not even parse."""
    payload = _request(RecordWriter(dice, oddness=dice.choice((0.0, 0.002, 0.01, 0.05))))
    if dice.random() < 0.2:
        damage: Callable[[Random, bytearray], bytes] = dice.choice((_flip, _truncate, _splice, _insert))
        return damage(dice, bytearray(payload))
    return payload


def _request(writer: RecordWriter) -> bytes:
    dice = writer.dice
    records = [writer.delimited(number, _name(writer)) for number in (1, 2, 3) if dice.random() < 0.5]
    count = dice.choice((0, 1, 1, 1, 2, 3))
    form = dice.choice(("raw", "typed", "typed", "both"))
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        records += _parameter(writer, 4)
    records += [_input(writer, typed=form != "raw") for _ in range(count)]
    records += [_output(writer) for _ in range(dice.choice((0, 0, 1, 2)))]
    if form != "typed":
        surplus = dice.choice((0, 0, 0, 0, 1, -1)) if writer.odd() or form == "both" else 0
        records += [writer.delimited(7, dice.randbytes(dice.randint(0, 9))) for _ in range(count + surplus)]
    return writer.message(records)


def _input(writer: RecordWriter, *, typed: bool) -> Record:
    dice = writer.dice
    datatype = dice.choice(tuple(_FIELDS) if dice.random() < 0.9 else _ODD_DATATYPES)
    rank = dice.choice((0, 1, 1, 2, 3, 6)) if dice.random() < 0.97 else dice.choice((32, 33, 64))
    sizes = [writer.varint(dice.choice(_SIZES)) for _ in range(rank)]
    records = [writer.delimited(1, _name(writer)), writer.delimited(2, datatype), *writer.repeated(3, VARINT, sizes)]
    if dice.random() < 0.1:
        records += _parameter(writer, 4, extensions=True)
    if typed and dice.random() < 0.95:
        records += writer.merged(5, _contents(writer, datatype))
    return writer.delimited(5, writer.message(records))


def _output(writer: RecordWriter) -> Record:
    parameters = _parameter(writer, 2, extensions=True) if writer.dice.random() < 0.2 else []
    return writer.delimited(6, writer.message([writer.delimited(1, _name(writer)), *parameters]))


def _name(writer: RecordWriter) -> bytes:
    return writer.dice.choice(_ODD_NAMES if writer.odd() else _NAMES)


def _contents(writer: RecordWriter, datatype: bytes) -> list[Record]:
    """Typed contents: mostly in the field that is right for ``datatype``."""
    dice = writer.dice
    fields = [_FIELDS.get(datatype, dice.randint(1, 8))]
    while dice.random() < 0.1:
        fields.append(dice.randint(1, 8))
    records: list[Record] = []
    for field in fields:
        count = dice.choice((0, 1, 2, 5))
        if field == 8:
            records += [writer.delimited(8, dice.randbytes(dice.randint(0, 4))) for _ in range(count)]
        else:
            records += writer.repeated(field, _wire_type(field), _elements(writer, field, count))
    return records


def _wire_type(field: int) -> int:
    return {6: FIXED32, 7: FIXED64}.get(field, VARINT)


def _elements(writer: RecordWriter, field: int, count: int) -> Sequence[bytes]:
    dice = writer.dice
    if field in (6, 7):
        return [dice.randbytes(4 if field == 6 else 8) for _ in range(count)]
    return [writer.varint(dice.choice(_INTEGERS)) for _ in range(count)]


def _parameter(writer: RecordWriter, number: int, *, extensions: bool = False) -> list[Record]:
    """An entry of a map of parameters; a key may come twice."""
    dice = writer.dice
    choices = (
        lambda: writer.number(1, dice.choice((0, 1, 2))),
        lambda: writer.number(2, dice.choice(_INTEGERS)),
        lambda: writer.delimited(3, _name(writer)),
        lambda: writer.double(4, dice.choice((0.0, -0.5, float("nan"), float("inf")))),
        lambda: writer.number(5, dice.choice(_INTEGERS)),
    )
    values = [dice.choice(choices)() for _ in range(dice.choice((1,) * 12 + (0, 2)))]
    if extensions and dice.random() < 0.3:
        return _place(writer, number)
    key = dice.choice(_EXTENSIONS if dice.random() < (0.4 if extensions else 0.05) else _KEYS)
    entry = [writer.delimited(1, _name(writer) if writer.odd() else key)]
    if dice.random() < 0.97:
        entry += writer.merged(2, values)
    return [writer.delimited(number, writer.message(entry))]


def _place(writer: RecordWriter, number: int) -> list[Record]:
    """The parameters of a place in shared memory: mostly right."""
    dice = writer.dice
    entries = [
        (b"shared_memory_region", writer.delimited(3, _name(writer))),
        (
            b"shared_memory_byte_size",
            writer.number(2, dice.choice((0, 4, 2**40) if dice.random() < 0.9 else _INTEGERS)),
        ),
    ]
    if dice.random() < 0.5:
        entries.append((b"shared_memory_offset", writer.number(2, dice.choice((0, 8, -1)))))
    return [
        writer.delimited(number, writer.message([writer.delimited(1, key), writer.delimited(2, value)]))
        for key, value in entries
        if not writer.odd()
    ]


def _flip(dice: Random, payload: bytearray) -> bytes:
    for _ in range(dice.randint(1, 3)):
        if payload:
            payload[dice.randrange(len(payload))] ^= 1 << dice.randrange(8)
    return bytes(payload)


def _truncate(dice: Random, payload: bytearray) -> bytes:
    return bytes(payload[: dice.randint(0, len(payload))])


def _insert(dice: Random, payload: bytearray) -> bytes:
    place = dice.randint(0, len(payload))
    return bytes(payload[:place] + dice.randbytes(dice.randint(1, 4)) + payload[place:])


def _splice(dice: Random, payload: bytearray) -> bytes:
    """The beginning of one request and the end of another."""
    other = _request(RecordWriter(dice, oddness=0.01))
    return bytes(payload[: dice.randint(0, len(payload))]) + other[dice.randint(0, len(other)) :]
