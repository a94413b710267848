"""The walk over protobuf's wire format, held against messages written by the protobuf library."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preheat_backends.wire import CutShort, MalformedMessage, fields


def test_it_reads_what_protobuf_writes() -> None:
    tensor = onnx.TensorProto(dims=[1, 300, -1], name="weight", raw_data=b"abc", data_type=1)
    read = [(number, value if isinstance(value, int) else bytes(value)) for number, value in fields(_view(tensor))]
    assert read == [(1, 1), (1, 300), (1, (1 << 64) - 1), (2, 1), (8, b"weight"), (9, b"abc")]


def test_it_reads_numbers_of_fixed_size() -> None:
    attribute = onnx.AttributeProto(f=1.0)
    assert list(fields(_view(attribute))) == [(2, 0x3F800000)]
    assert list(fields(memoryview(b"\x09" + bytes(7) + b"\x01"))) == [(1, 1 << 56)]


def test_a_field_beyond_its_message_is_told_by_its_number() -> None:
    with pytest.raises(CutShort) as raised:
        list(fields(memoryview(b"\x08\x01\x3a\x05abc")))
    assert raised.value.field == 7


@pytest.mark.parametrize("content", [b"\x00\x01", b"\x0b", b"\x08" + b"\xff" * 10, b"\x08\x80"])
def test_what_is_no_message_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedMessage):
        list(fields(memoryview(content)))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        read = list(fields(memoryview(content)))
    except MalformedMessage:
        return
    assert all(number > 0 for number, _ in read)


def _view(message: onnx.TensorProto | onnx.AttributeProto) -> memoryview:
    return memoryview(message.SerializeToString())
