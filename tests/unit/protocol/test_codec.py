"""Requests and answers to and from wire bytes: what goes in comes out, and rubbish is refused."""

import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preheat.errors import InvalidRequest, ServingError, Unsupported
from preheat.messages import InferResponse, OutputTensor, Parameter, Place
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import decode_request, encode_response
from preheat.tensors import Array, DataType, from_raw, to_raw

# The field of InferTensorContents that carries each datatype; FP16 and BF16 have none.
FIELDS = {
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
shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)


def arrays(datatype: DataType) -> st.SearchStrategy[Array]:
    if datatype is DataType.BYTES:
        return hnp.arrays(np.object_, shapes, elements=st.binary(max_size=4))
    if datatype is DataType.BF16:
        numbers = st.floats(width=16, allow_nan=False)
        return hnp.arrays(np.float32, shapes, elements=numbers).map(lambda each: each.astype(ml_dtypes.bfloat16))
    return hnp.arrays(datatype.numpy, shapes, elements={"allow_nan": False} if datatype.numpy.kind == "f" else None)


def raw_message(*tensors: tuple[str, DataType, Array]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    for name, datatype, array in tensors:
        message.inputs.add(name=name, datatype=datatype.value, shape=array.shape)
        message.raw_input_contents.append(to_raw(array))
    return message


def typed_message(
    datatype: str, shape: Sequence[int], field: str = "", values: Sequence[object] = ()
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.SetInParent()
    if field:
        getattr(tensor.contents, field).extend(values)
    return message


def decoded_array(message: pb.ModelInferRequest) -> Array:
    (tensor,) = decode_request(message.SerializeToString(), deadline_s=None).inputs
    assert not isinstance(tensor.data, bytes | memoryview)
    return tensor.data


def refusal(message: pb.ModelInferRequest, kind: type[ServingError] = InvalidRequest) -> str:
    with pytest.raises(kind) as caught:
        decode_request(message.SerializeToString(), deadline_s=None)
    return str(caught.value)


def test_a_request_keeps_everything_it_says() -> None:
    message = pb.ModelInferRequest(model_name="bert", model_version="3", id="seven")
    message.outputs.add(name="b")
    message.outputs.add(name="a")
    message.parameters["flag"].bool_param = False
    message.parameters["number"].int64_param = -1
    message.parameters["priority"].uint64_param = 2**64 - 1
    message.parameters["share"].double_param = 0.5
    message.parameters["text"].string_param = ""
    payload = message.SerializeToString()
    request = decode_request(payload, deadline_s=12.5)
    assert (request.model, request.version, request.id, request.inputs) == ("bert", "3", "seven", ())
    assert request.requested_outputs == ("b", "a")
    expected = {"flag": False, "number": -1, "priority": 2**64 - 1, "share": 0.5, "text": ""}
    assert request.parameters == expected
    assert type(request.parameters["flag"]) is bool
    assert (request.deadline_s, request.payload_bytes) == (12.5, len(payload))


@given(st.sampled_from(DataType), st.data())
def test_raw_contents_of_every_datatype_arrive_as_they_were_sent(datatype: DataType, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    payload = raw_message(("x", datatype, array)).SerializeToString()
    (tensor,) = decode_request(payload, deadline_s=None).inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype.value, array.shape)
    assert isinstance(tensor.data, bytes | memoryview)
    assert from_raw(datatype, tensor.shape, tensor.data).tolist() == array.tolist()


@given(st.sampled_from(list(FIELDS)), st.data())
def test_typed_contents_of_every_datatype_arrive_as_they_were_sent(datatype: DataType, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    message = typed_message(datatype.value, array.shape, FIELDS[datatype], array.ravel().tolist())
    flat = decoded_array(message)
    assert (flat.dtype, flat.shape) == (datatype.numpy, (array.size,))
    assert flat.tolist() == array.ravel().tolist()


def test_raw_contents_go_to_the_inputs_in_their_order() -> None:
    first, second = np.array([1], np.int8), np.array([2], np.int8)
    message = raw_message(("b", DataType.INT8, first), ("a", DataType.INT8, second))
    request = decode_request(message.SerializeToString(), deadline_s=None)
    assert [(each.name, bytes(each.data)) for each in request.inputs] == [("b", b"\1"), ("a", b"\2")]


@pytest.mark.parametrize(
    ("datatype", "values", "expected"),
    [
        ("INT8", [127, 128, -129, 256], [127, -128, 127, 0]),
        ("INT16", [32768, -32769], [-32768, 32767]),
        ("UINT8", [255, 256, 511], [255, 0, 255]),
        ("UINT16", [65535, 65536], [65535, 0]),
    ],
)
def test_small_integers_that_do_not_fit_are_cut_to_their_low_bits(
    datatype: str, values: list[int], expected: list[int]
) -> None:
    field = "uint_contents" if datatype.startswith("U") else "int_contents"
    assert decoded_array(typed_message(datatype, [len(values)], field, values)).tolist() == expected


def test_raw_and_typed_contents_in_one_request_are_refused_by_the_input_that_has_both() -> None:
    message = raw_message(("x", DataType.INT8, np.zeros(1, np.int8)), ("y", DataType.INT8, np.zeros(1, np.int8)))
    message.inputs[1].contents.int_contents.append(1)
    assert refusal(message) == (
        "contents field must not be specified when using raw_input_contents for 'y' for model 'm'"
    )


def test_too_few_raw_contents_are_refused_by_the_first_input_without() -> None:
    message = raw_message(*[(name, DataType.INT8, np.zeros(1, np.int8)) for name in "abc"])
    del message.raw_input_contents[1:]
    assert refusal(message) == "unable to find data for input tensor 'b' for model 'm' in request."


def test_too_many_raw_contents_are_refused_by_their_number() -> None:
    message = raw_message(("x", DataType.INT8, np.zeros(1, np.int8)))
    message.raw_input_contents.append(b"")
    assert refusal(message) == (
        "raw_input_contents has 2 entries for 1 inputs that are not in shared memory for model 'm'"
    )


def test_an_input_without_any_data_is_refused() -> None:
    for message in (typed_message("FP32", [1]), pb.ModelInferRequest(model_name="m")):
        if not message.inputs:
            message.inputs.add(name="x", datatype="FP32", shape=[2])
        assert refusal(message) == "unable to find data for input tensor 'x' for model 'm' in request."


@pytest.mark.parametrize("datatype", FIELDS)
def test_an_empty_tensor_needs_no_data(datatype: DataType) -> None:
    flat = decoded_array(typed_message(datatype.value, [2, 0]))
    assert (flat.dtype, flat.shape) == (datatype.numpy, (0,))


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents_in_the_field_of_another_datatype_are_refused_by_both(datatype: DataType) -> None:
    for field in sorted({*FIELDS.values()} - {FIELDS[datatype]}):
        value: object = b"1" if field == "bytes_contents" else 1
        text = refusal(typed_message(datatype.value, [1], field, [value]))
        assert text == (
            f"unexpected explicit tensor data for input tensor 'x' for model 'm' in {field}: "
            f"datatype '{datatype.value}' goes into {FIELDS[datatype]}"
        )


def test_typed_contents_in_two_fields_are_refused() -> None:
    message = typed_message("FP32", [1], "fp32_contents", [1.0])
    message.inputs[0].contents.int_contents.append(1)
    assert "in int_contents: datatype 'FP32' goes into fp32_contents" in refusal(message)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_must_be_raw(datatype: str) -> None:
    text = refusal(typed_message(datatype, [1], "fp32_contents", [1.0]))
    assert text == f"input 'x' for model 'm' of datatype '{datatype}' has no typed contents; use raw_input_contents"


@pytest.mark.parametrize("datatype", ["", "fp32", "FP8"])
def test_a_datatype_that_there_is_not_is_refused_with_those_there_are(datatype: str) -> None:
    text = refusal(typed_message(datatype, [1], "fp32_contents", [1.0]))
    assert f"of datatype '{datatype}' has no typed contents; use one of BOOL, INT8" in text


def test_a_parameter_without_a_value_is_refused_by_its_name() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.parameters["empty"].SetInParent()
    assert refusal(message) == "request parameter 'empty' has no value"


def test_what_is_not_offered_is_refused_as_such_and_by_what_asked_for_it() -> None:
    classes = pb.ModelInferRequest(model_name="m")
    classes.outputs.add(name="y").parameters["classification"].int64_param = 3
    assert "output 'y': the classification extension is not supported" in refusal(classes, Unsupported)


def shared_message() -> pb.ModelInferRequest:
    """Of three inputs the second in shared memory, the others raw; and an output that is to go there."""
    message = raw_message(("a", DataType.INT8, np.ones(1, np.int8)), ("c", DataType.INT8, np.zeros(1, np.int8)))
    message.inputs.insert(1, pb.ModelInferRequest.InferInputTensor(name="b", datatype="FP32", shape=[2]))
    message.outputs.add(name="y")
    for tensor, offset in ((message.inputs[1], None), (message.outputs[0], 8)):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 8
        if offset is not None:
            tensor.parameters["shared_memory_offset"].int64_param = offset
    return message


@pytest.mark.parametrize("known", [False, True])
def test_raw_contents_are_those_of_the_inputs_that_are_not_in_shared_memory(known: bool) -> None:
    payload = shared_message().SerializeToString()
    for _ in range(1 + known):
        request = decode_request(payload, deadline_s=None)
    data = [bytes(each.data) for each in request.inputs]
    assert data == [b"\1", b"", b"\0"]
    assert request.sources == ((1, Place("r", 0, 8)),)
    assert dict(request.places) == {"y": Place("r", 8, 8)}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("shared_memory_byte_size", "needs 'shared_memory_byte_size'"),
        ("shared_memory_offset", "'shared_memory_offset' must be a whole number"),
        ("shared_memory_region", "must be a string"),
    ],
)
def test_a_place_that_is_none_is_refused_by_what_is_wrong_with_it(key: str, said: str) -> None:
    for position in (0, 1):
        message = shared_message()
        tensor: Any = (message.inputs[1], message.outputs[0])[position]
        if key == "shared_memory_byte_size":
            del tensor.parameters[key]
        else:
            tensor.parameters[key].int64_param = -1
        assert said in refusal(message)
        assert ("input 'b'", "output 'y'")[position] in refusal(message)


def test_an_output_that_was_put_into_shared_memory_has_an_empty_entry_in_the_answer() -> None:
    outputs = (
        OutputTensor("a", DataType.INT8, np.ones(2, np.int8)),
        OutputTensor("b", DataType.INT8, np.ones(3, np.int8), placed=True),
        OutputTensor("c", DataType.INT8, np.zeros(1, np.int8)),
    )
    message = pb.ModelInferResponse.FromString(encode_response(InferResponse("m", "1", "", outputs)))
    assert list(message.raw_output_contents) == [b"\1\1", b"", b"\0"]
    assert [(each.name, list(each.shape)) for each in message.outputs] == [("a", [2]), ("b", [3]), ("c", [1])]


@given(st.binary(max_size=200))
def test_rubbish_is_refused_and_nothing_worse(payload: bytes) -> None:
    try:
        decode_request(payload, deadline_s=None)
    except ServingError:
        return


names = st.sampled_from(["", "x", "y"])


@st.composite
def odd_messages(draw: st.DrawFn) -> bytes:
    """Messages that parse, of fields that need not agree, some of them cut or changed in a byte."""
    message = pb.ModelInferRequest(model_name=draw(names), model_version=draw(names))
    for _ in range(draw(st.integers(0, 3))):
        tensor = message.inputs.add(name=draw(names), datatype=draw(st.sampled_from(["FP32", "BYTES", "INT8", "FP16"])))
        tensor.shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3), max_size=3)))
        for field in draw(st.sets(st.sampled_from(sorted({*FIELDS.values()})), max_size=2)):
            values: list[object] = [b"1", b""] if field == "bytes_contents" else [1, 0]
            getattr(tensor.contents, field).extend(values)
        if draw(st.booleans()):
            tensor.parameters[draw(names)].int64_param = 1
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=8), max_size=3)))
    for name in draw(st.lists(names, max_size=2)):
        message.outputs.add(name=name)
    if draw(st.booleans()):
        message.parameters[draw(names)].SetInParent()
    payload = bytearray(message.SerializeToString())
    if payload and draw(st.booleans()):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return bytes(payload)


@given(odd_messages())
def test_a_message_whose_parts_do_not_agree_is_decoded_or_refused_and_nothing_worse(payload: bytes) -> None:
    try:
        request = decode_request(payload, deadline_s=None)
    except ServingError:
        return
    assert all(isinstance(each.data, bytes | memoryview | np.ndarray) for each in request.inputs)


def test_a_message_that_is_none_says_what_it_should_be() -> None:
    with pytest.raises(InvalidRequest, match=r"no valid inference\.ModelInferRequest"):
        decode_request(b"\xff\xff\xff", deadline_s=None)


def encoded(
    *outputs: tuple[str, DataType, Array], parameters: dict[str, Parameter] | None = None
) -> pb.ModelInferResponse:
    tensors = tuple(OutputTensor(*each) for each in outputs)
    payload = encode_response(InferResponse("m", "3", "seven", tensors, parameters or {}))
    return pb.ModelInferResponse.FromString(payload)


@given(st.sampled_from(DataType), st.data())
def test_an_answer_is_raw_whatever_its_datatype(datatype: DataType, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    message = encoded(("y", datatype, array))
    (output,) = message.outputs
    assert (output.name, output.datatype, tuple(output.shape)) == ("y", datatype.value, array.shape)
    assert not output.HasField("contents")
    (raw,) = message.raw_output_contents
    assert from_raw(datatype, array.shape, raw).tolist() == array.tolist()


def test_an_answer_has_its_outputs_in_order_and_says_who_computed_it_for_whom() -> None:
    message = encoded(("b", DataType.INT8, np.array([1], np.int8)), ("a", DataType.INT16, np.array([2], np.int16)))
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "seven")
    assert [each.name for each in message.outputs] == ["b", "a"]
    assert list(message.raw_output_contents) == [b"\1", b"\2\0"]


def test_a_slice_that_is_not_contiguous_is_encoded_row_by_row() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    (raw,) = encoded(("y", DataType.INT32, array[:, 1::2])).raw_output_contents
    assert struct.unpack("<6i", raw) == (1, 3, 5, 7, 9, 11)


def test_an_empty_answer_has_an_entry_without_bytes() -> None:
    message = encoded(("y", DataType.FP32, np.empty((0, 3), np.float32)))
    assert (list(message.outputs[0].shape), list(message.raw_output_contents)) == ([0, 3], [b""])


@pytest.mark.parametrize(
    ("value", "field"), [(True, "bool_param"), (7, "int64_param"), (0.5, "double_param"), ("x", "string_param")]
)
def test_a_parameter_of_an_answer_keeps_its_type(value: Parameter, field: str) -> None:
    parameter = encoded(parameters={"k": value}).parameters["k"]
    assert (parameter.WhichOneof("parameter_choice"), getattr(parameter, field)) == (field, value)


class Untouchable(np.ndarray[tuple[int, ...], np.dtype[np.float64]]):
    """An array that may be measured but not copied."""

    def tobytes(self, order: str | None = None) -> bytes:
        raise AssertionError(f"copied in order {order}")


def test_an_answer_that_grpc_could_not_carry_is_refused_by_its_size_before_it_is_copied() -> None:
    # One number that claims to be many, so that no memory is spent on it.
    huge = np.broadcast_to(np.zeros(1), (2**28,)).view(Untouchable)
    with pytest.raises(InvalidRequest, match=r"Response has byte size \d+ which exceeds gRPC's byte size limit"):
        encode_response(InferResponse("m", "1", "", (OutputTensor("y", DataType.FP64, huge),)))
