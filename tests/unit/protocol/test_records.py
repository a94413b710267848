"""Messages cut into records and put together: whatever protobuf would say of them is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.records import Layout, cut, header

ID, RAW = 3, 7


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    raw = draw(st.lists(st.binary(max_size=300), max_size=4))
    message = pb.ModelInferRequest(
        model_name=draw(st.text(max_size=9)), id=draw(st.text(max_size=200)), raw_input_contents=raw
    )
    for name in draw(st.lists(st.text(max_size=5), max_size=3)):
        message.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(-1, 2**40), max_size=3)))
    return message


@given(requests())
def test_what_is_cut_out_and_what_is_left_are_the_message(message: pb.ModelInferRequest) -> None:
    found = cut(message.SerializeToString(), only=ID, contents=RAW)
    assert found is not None
    assert found.only.decode() == message.id
    assert [bytes(each) for each in found.contents] == list(message.raw_input_contents)
    rest = pb.ModelInferRequest.FromString(found.rest)
    del message.raw_input_contents[:]
    message.ClearField("id")
    assert rest == message


@given(requests(), st.data())
def test_a_message_is_cut_as_one_of_its_layout_was_and_no_other_is(
    message: pb.ModelInferRequest, data: st.DataObject
) -> None:
    payload = message.SerializeToString()
    found = cut(payload, only=ID, contents=RAW)
    assert found is not None
    layout = Layout(payload, found.spans)
    other = bytearray(payload)
    for start, stop in found.spans:
        other[start:stop] = data.draw(st.binary(min_size=stop - start, max_size=stop - start))
    parts = layout.cut(bytes(other))
    again = cut(bytes(other), only=ID, contents=RAW)
    assert parts is not None
    assert again is not None
    assert (parts[0], list(parts[1])) == (again.only, list(again.contents))
    varied = {place for start, stop in found.spans for place in range(start, stop)}
    fixed = sorted(set(range(len(payload))) - varied)
    if fixed:
        other[data.draw(st.sampled_from(fixed))] ^= 1 << data.draw(st.integers(0, 7))
        assert layout.cut(bytes(other)) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0b\x0c",  # a group
        b"\x0f",  # no wire type
        b"\x02\x00",  # field 0
        b"\x80\x01\x00",  # field 16
        b"\x0a",
        b"\x0a\x02a",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x80\x80\x80\x80\x80\x00",
        b"\x08" + b"\xff" * 11,
        b"\x09" + b"\0" * 7,
        b"\x0d" + b"\0" * 3,
        b"\x1a\x01a\x1a\x01b",  # two ids
        b"\x0a\x00" * 1001,
    ],
)
def test_what_no_encoder_writes_is_left_to_protobuf(payload: bytes) -> None:
    assert cut(payload, only=ID, contents=RAW) is None


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 2**21, 2**28, 2**31 - 1])
def test_a_header_is_read_back(length: int) -> None:
    begun = header(RAW, length)
    assert begun[0] == RAW << 3 | 2
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(begun[1:])) == length
    assert [byte >= 0x80 for byte in begun[1:]] == [True] * (len(begun) - 2) + [False]
