"""Protobuf's wire format by hand, so that messages can be written as no library would write them.

https://protobuf.dev/programming-guides/encoding. Every choice is a :class:`random.Random`'s: one seed, one message.
"""

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

Record: TypeAlias = bytes

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
# One past the largest field number, and wire types that there are not.
_ODD_NUMBERS = (0, 1, 2, 3, 5, 7, 9, 15, 16, 536870911)
_ODD_WIRE_TYPES = tuple(range(8))


class RecordWriter:
    """Writes records and messages, and now and then oddly: with chance ``oddness`` at each turn."""

    def __init__(self, dice: Random, *, oddness: float) -> None:
        self.dice = dice
        self._oddness = oddness

    def odd(self) -> bool:
        """Whether to do the next thing oddly."""
        return self.dice.random() < self._oddness

    def varint(self, value: int) -> bytes:
        """``value`` modulo 2**64; oddly, longer than need be: up to ten bytes is allowed, eleven is not."""
        value &= 2**64 - 1
        groups = [value & 0x7F]
        while value := value >> 7:
            groups.append(value & 0x7F)
        if self.odd():
            groups += [0] * self.dice.randint(0, 11 - len(groups))
        return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])

    def tag(self, number: int, wire_type: int) -> bytes:
        """What a record begins with; oddly, of another wire type, under which the rest reads otherwise."""
        if self.odd():
            wire_type = self.dice.choice(_ODD_WIRE_TYPES)
        return self.varint(number << 3 | wire_type)

    def delimited(self, number: int, body: bytes) -> Record:
        """A string, bytes, a message or packed numbers; oddly, announced longer or shorter than it is."""
        length = len(body)
        if self.odd():
            length = max(0, length + self.dice.choice((-2, -1, 1, 2, 2**31)))
        return self.tag(number, BYTES) + self.varint(length) + body

    def number(self, number: int, value: int) -> Record:
        """An integer or a bool."""
        return self.tag(number, VARINT) + self.varint(value)

    def double(self, number: int, value: float) -> Record:
        """A double."""
        return self.tag(number, FIXED64) + struct.pack("<d", value)

    def repeated(self, number: int, wire_type: int, elements: Sequence[bytes]) -> list[Record]:
        """Numbers: packed, as they should be, or one by one, or partly so, which every parser must take too."""
        if not self.odd():
            return [self.delimited(number, b"".join(elements))] if elements else []
        cut = self.dice.randint(0, len(elements))
        packed = self.delimited(number, b"".join(elements[:cut]))
        return [packed, *(self.tag(number, wire_type) + element for element in elements[cut:])]

    def merged(self, number: int, records: Sequence[Record]) -> list[Record]:
        """A message in a field that holds one; oddly, in two parts, which parsers merge."""
        if not self.odd():
            return [self.delimited(number, self.message(records))]
        cut = self.dice.randint(0, len(records))
        return [self.delimited(number, self.message(part)) for part in (records[:cut], records[cut:])]

    def message(self, records: Sequence[Record]) -> bytes:
        """A message of ``records``; oddly, with one lost, twice, cut short, between others or not known at all."""
        written = list(records)
        while self.odd():
            self.dice.choice(_RECORD_MISTAKES)(self, written)
        return b"".join(written)

    def unknown(self) -> Record:
        """A record of a field that may not be there, of any wire type, a group among them."""
        number, wire_type = self.dice.choice(_ODD_NUMBERS), self.dice.randint(0, 7)
        if wire_type == GROUP:
            end = self.tag(number, END_GROUP) if not self.odd() else b""
            return self.tag(number, GROUP) + self.number(1, 1) + end
        bodies = {
            VARINT: self.varint(self.dice.getrandbits(64)),
            FIXED64: self.dice.randbytes(8),
            BYTES: self.varint(3) + self.dice.randbytes(3),
            FIXED32: self.dice.randbytes(4),
        }
        return self.tag(number, wire_type) + bodies.get(wire_type, b"")


def _lose(writer: RecordWriter, records: list[Record]) -> None:
    if records:
        del records[writer.dice.randrange(len(records))]


def _repeat(writer: RecordWriter, records: list[Record]) -> None:
    if records:
        records.insert(writer.dice.randint(0, len(records)), writer.dice.choice(records))


def _shuffle(writer: RecordWriter, records: list[Record]) -> None:
    writer.dice.shuffle(records)


def _cut(writer: RecordWriter, records: list[Record]) -> None:
    if records:
        position = writer.dice.randrange(len(records))
        records[position] = records[position][: writer.dice.randint(0, len(records[position]))]


def _add(writer: RecordWriter, records: list[Record]) -> None:
    records.insert(writer.dice.randint(0, len(records)), writer.unknown())


_RECORD_MISTAKES: tuple[Callable[[RecordWriter, list[Record]], None], ...] = (_lose, _repeat, _shuffle, _cut, _add)
