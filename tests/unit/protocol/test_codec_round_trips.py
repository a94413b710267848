"""Any tensor, bit for bit: through a request, raw and typed, and through an answer."""

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preheat.messages import InferResponse, OutputTensor
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import decode_request, encode_response
from preheat.tensors import Array, DataType, from_raw, to_raw

TYPED_FIELDS = {
    DataType.BOOL: "bool_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.BYTES: "bytes_contents",
}
FLOATS = (DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64)
MOST_ELEMENTS = 64
# The same examples each time, however slow the machine is.
several = settings(
    max_examples=120, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

# From a single number to six dimensions, with none of size 0, or some.
shapes = st.lists(st.integers(0, 4), max_size=6).map(tuple).filter(lambda shape: math.prod(shape) <= MOST_ELEMENTS)


@st.composite
def tensors(draw: st.DrawFn, datatype: DataType) -> Array:
    """Any bits at all: of floats every NaN; of BYTES elements with zeros in them and without any byte."""
    shape = draw(shapes)
    count = math.prod(shape)
    if datatype is DataType.BYTES:
        elements = draw(st.lists(st.binary(max_size=5) | st.just(b"a\0b\0"), min_size=count, max_size=count))
        array = np.empty(count, np.object_)
        array[:] = elements
        return array.reshape(shape)
    size = count * datatype.numpy.itemsize
    bits = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    return (bits & 1 if datatype is DataType.BOOL else bits).view(datatype.numpy).reshape(shape)


def bits(array: Array) -> bytes | list[bytes]:
    """What tells arrays apart where == does not: NaNs by their payload, zeros by their sign."""
    return array.ravel().tolist() if array.dtype.kind == "O" else array.tobytes()


def assert_same(actual: Array, expected: Array) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert bits(actual) == bits(expected)


def through_raw_request(datatype: DataType, array: Array) -> Array:
    message = pb.ModelInferRequest(raw_input_contents=[to_raw(array)])
    message.inputs.add(name="x", datatype=datatype.value, shape=array.shape)
    (tensor,) = decode_request(message.SerializeToString(), deadline_s=None).inputs
    assert isinstance(tensor.data, bytes | memoryview)
    assert tensor.datatype == datatype.value
    return from_raw(datatype, tensor.shape, tensor.data)


def through_typed_request(datatype: DataType, array: Array) -> Array:
    message = pb.ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype.value, shape=array.shape)
    getattr(tensor.contents, TYPED_FIELDS[datatype]).extend(array.ravel().tolist())
    (decoded,) = decode_request(message.SerializeToString(), deadline_s=None).inputs
    assert isinstance(decoded.data, np.ndarray)
    assert decoded.shape == array.shape
    return decoded.data.reshape(decoded.shape)


def through_response(datatype: DataType, array: Array) -> Array:
    payload = encode_response(InferResponse("m", "1", "", (OutputTensor("y", datatype, array),)))
    message = pb.ModelInferResponse.FromString(payload)
    (output,), (raw,) = message.outputs, message.raw_output_contents
    assert output.datatype == datatype.value
    return from_raw(datatype, tuple(output.shape), raw)


def quietened(array: Array) -> Array:
    """``array`` with its signalling NaNs quiet, as they become where protobuf holds an FP32 as a double."""
    if array.dtype != np.float32:
        return array
    words = array.view(np.uint32) | np.where(np.isnan(array), np.uint32(1 << 22), np.uint32(0))
    return words.view(np.float32)


@pytest.mark.parametrize("datatype", DataType)
def test_a_tensor_comes_through_a_raw_request_bit_for_bit(datatype: DataType) -> None:
    @several
    @given(tensors(datatype))
    def check(array: Array) -> None:
        assert_same(through_raw_request(datatype, array), array)

    check()


@pytest.mark.parametrize("datatype", TYPED_FIELDS)
def test_a_tensor_comes_through_a_typed_request_bit_for_bit(datatype: DataType) -> None:
    @several
    @given(tensors(datatype))
    def check(array: Array) -> None:
        assert_same(through_typed_request(datatype, array), quietened(array))

    check()


@pytest.mark.parametrize("datatype", DataType)
def test_a_tensor_comes_through_an_answer_bit_for_bit_however_it_lies_in_memory(datatype: DataType) -> None:
    @several
    @given(tensors(datatype), st.data())
    def check(array: Array, data: st.DataObject) -> None:
        lying: Array = array.transpose(data.draw(st.permutations(range(array.ndim))))
        if lying.ndim and data.draw(st.booleans()):
            lying = lying[::-1]
        assert_same(through_response(datatype, lying), np.ascontiguousarray(lying).reshape(lying.shape))

    check()


@pytest.mark.parametrize("datatype", FLOATS)
def test_every_kind_of_nan_keeps_its_bits_where_it_is_raw(datatype: DataType) -> None:
    size = datatype.numpy.itemsize
    mantissa = {DataType.FP16: 10, DataType.BF16: 7, DataType.FP32: 23, DataType.FP64: 52}[datatype]
    exponent = (1 << 8 * size) - (1 << mantissa)
    payloads = (1, (1 << mantissa) - 1, 1 << mantissa - 1, (1 << mantissa - 1) + 1)
    words = [sign | exponent & ~(1 << 8 * size - 1) | low for sign in (0, 1 << 8 * size - 1) for low in payloads]
    raw = b"".join(word.to_bytes(size, "little") for word in words)
    array = from_raw(datatype, (len(words),), raw)
    with np.errstate(invalid="ignore"):
        assert np.isnan(array).all()
    assert to_raw(through_raw_request(datatype, array)) == raw
    assert to_raw(through_response(datatype, array)) == raw


def test_a_typed_nan_keeps_its_payload() -> None:
    single = np.frombuffer(struct.pack("<2I", 0x7FC00001, 0xFFFFFFFF), np.float32)
    double = np.frombuffer(struct.pack("<3Q", 0x7FF8000000000001, 0xFFFFFFFFFFFFFFFF, 0x7FF0000000000001), np.float64)
    assert_same(through_typed_request(DataType.FP32, single), single)
    assert_same(through_typed_request(DataType.FP64, double), double)


@pytest.mark.parametrize("datatype", DataType)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 2, 0), (1,) * 6, (1,) * 32])
def test_odd_shapes_come_through_all_three_ways(datatype: DataType, shape: tuple[int, ...]) -> None:
    array: Array = np.full(shape, b"a\0b" if datatype is DataType.BYTES else 1, datatype.numpy)
    assert_same(through_raw_request(datatype, array), array)
    assert_same(through_response(datatype, array), array)
    if datatype in TYPED_FIELDS:
        assert_same(through_typed_request(datatype, array), array)


@several
@given(st.lists(st.sampled_from(DataType).flatmap(lambda kind: st.tuples(st.just(kind), tensors(kind))), max_size=4))
def test_several_tensors_stay_apart_and_in_order(kinds: list[tuple[DataType, Array]]) -> None:
    message = pb.ModelInferRequest()
    for position, (datatype, array) in enumerate(kinds):
        message.inputs.add(name=f"x{position}", datatype=datatype.value, shape=array.shape)
        message.raw_input_contents.append(to_raw(array))
    inputs = decode_request(message.SerializeToString(), deadline_s=None).inputs
    assert [each.name for each in inputs] == [f"x{position}" for position in range(len(kinds))]
    for tensor, (datatype, array) in zip(inputs, kinds, strict=True):
        data: Any = tensor.data
        if message.raw_input_contents:
            assert_same(from_raw(datatype, tensor.shape, data), array)
