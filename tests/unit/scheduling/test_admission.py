"""Nothing that contradicts a signature gets past the gate, and what it says names the fault."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.builders import request, spec, tensor, unpadded

from preheat.backend import Dimension, Signature
from preheat.errors import InvalidRequest
from preheat.messages import InferRequest, InputTensor
from preheat.scheduling.admission import Gate
from preheat.tensors import Array, DataType

SEQUENCE = Dimension("seq", 1, 16)
SIGNATURE = Signature(
    inputs=(
        spec("ids", SEQUENCE, datatype=DataType.INT64),
        spec("mask", SEQUENCE, datatype=DataType.INT64),
        spec("pair", Dimension(minimum=2, multiple_of=2), datatype=DataType.FP32, optional=True),
        spec("words", -1, datatype=DataType.BYTES, optional=True),
    ),
    outputs=(spec("y", 4), spec("z", 4)),
    max_batch_size=4,
)
WHOLE = Signature((spec("x", 2, -1),), (spec("y", 2, -1),))


def gate_of(signature: Signature, model: str = "m") -> Gate:
    return Gate(model, signature, padding=unpadded(signature))


GATE = gate_of(SIGNATURE, "bert")


def tokens(name: str, rows: int = 1, length: int = 3) -> InputTensor:
    return tensor(name, np.arange(rows * length, dtype=np.int64).reshape(rows, length))


def words(*elements: bytes) -> InputTensor:
    array = np.empty((1, len(elements)), np.object_)
    array[0] = elements
    return tensor("words", array)


IDS, MASK = tokens("ids"), tokens("mask")
GOOD = request(IDS, MASK, model="bert")


def refusal(asked: InferRequest, gate: Gate = GATE) -> str:
    with pytest.raises(InvalidRequest) as caught:
        gate.admit(asked)
    return str(caught.value)


def with_inputs(*inputs: InputTensor) -> InferRequest:
    return GOOD._replace(inputs=inputs)


def test_a_request_that_fits_becomes_arrays_rows_and_a_batch_key() -> None:
    admitted = GATE.admit(with_inputs(tokens("ids", 2), tokens("mask", 2)))
    assert admitted.rows == 2
    assert admitted.inputs["ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert admitted.batch_key == (("ids", (3,)), ("mask", (3,)))


def test_the_batch_key_depends_on_shapes_and_on_which_inputs_are_there_but_not_on_rows_or_order() -> None:
    key = GATE.admit(GOOD).batch_key
    assert GATE.admit(with_inputs(tokens("mask", 4), tokens("ids", 4))).batch_key == key
    assert GATE.admit(with_inputs(tokens("ids", 1, 4), tokens("mask", 1, 4))).batch_key != key
    assert GATE.admit(with_inputs(IDS, MASK, words(b"a"))).batch_key != key


def test_inputs_are_handed_on_in_the_order_of_the_signature_whatever_order_they_came_in() -> None:
    assert list(GATE.admit(with_inputs(tokens("mask", 2), tokens("ids", 2))).inputs) == ["ids", "mask"]


def test_a_model_without_a_batch_axis_takes_whole_shapes_as_one_row() -> None:
    admitted = gate_of(WHOLE).admit(request(tensor("x", np.ones((2, 5), np.float32))))
    assert (admitted.rows, admitted.batch_key) == (1, (("x", (2, 5)),))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (GOOD._replace(requested_outputs=("w",)), ["output 'w'", "'bert'", "['y', 'z']"]),
        (GOOD._replace(requested_outputs=("y", "z", "y")), ["output 'y' already exists in request"]),
        (with_inputs(IDS), ["expected between 2 and 4 inputs but got 1", "missing required input(s) ['mask']"]),
        (with_inputs(), ["got 0 inputs", "missing required input(s) ['ids', 'mask']"]),
        (with_inputs(IDS, MASK, *[words()] * 3), ["got 5 inputs", "takes ['ids', 'mask', 'pair', 'words']"]),
        (with_inputs(IDS, MASK, tokens("type")), ["unexpected inference input 'type'", "'bert'", "'ids'"]),
        (with_inputs(IDS, MASK, MASK), ["input 'mask' already exists"]),
        (with_inputs(IDS._replace(shape=(3,)), MASK), ["input 'ids'", "Expected [-1,-1]", "seq(1..16)", "got [3]"]),
        (with_inputs(IDS._replace(shape=(1, -3)), MASK), ["unexpected shape for input 'ids'", "got [1,-3]"]),
        (with_inputs(IDS._replace(shape=(-1, -3)), MASK), ["unexpected shape for input 'ids'", "got [-1,-3]"]),
        (with_inputs(tokens("ids", 2), MASK), ["'mask' batch size does not match", "1 rows, but 'ids' has 2"]),
        (with_inputs(tokens("ids", 5), tokens("mask", 5)), ["batch-size must be <= 4", "at least 1: got 5"]),
        (with_inputs(tokens("ids", 0), tokens("mask", 0)), ["batch-size must be <= 4", "at least 1: got 0"]),
        (with_inputs(IDS._replace(datatype="INT32"), MASK), ["'ids' data-type is 'INT32'", "expects 'INT64'"]),
        (with_inputs(IDS._replace(datatype="int64"), MASK), ["'ids' data-type is 'int64'", "expects 'INT64'"]),
        (with_inputs(tokens("ids", 1, 17), MASK), ["Expected [-1,-1] with seq(1..16), got [1,17]", "1 to 4 rows"]),
        (with_inputs(tokens("ids", 1, 0), MASK), ["unexpected shape for input 'ids'", "got [1,0]"]),
        (with_inputs(IDS, tokens("mask", 1, 4)), ["'ids' and 'mask'", "agree in dimension 'seq'", "3 and 4"]),
        (
            with_inputs(IDS, MASK, tensor("pair", np.zeros((1, 3), np.float32))),
            ["input 'pair'", "any(2.. in steps of 2)", "got [1,3]"],
        ),
        (with_inputs(IDS._replace(data=b"1234567"), MASK), ["mismatch for input 'ids'", "expected 24 bytes, got 7"]),
        (with_inputs(IDS._replace(data=bytes(32)), MASK), ["mismatch for input 'ids'", "expected 24 bytes, got 32"]),
        (
            with_inputs(IDS._replace(data=np.arange(4)), MASK),
            ["number of elements for input 'ids'", "Expected 3, got 4"],
        ),
        (
            with_inputs(IDS, MASK, words(b"ab")._replace(data=b"\x03\0\0\0ab")),
            ["'words'", "element 0: 3 bytes announced, 2 there"],
        ),
        (
            with_inputs(IDS, MASK, words(b"ab", b"c")._replace(data=b"\x02\0\0\0ab\x01\0")),
            ["'words'", "element 1: its length is cut off at byte 6"],
        ),
        (
            with_inputs(IDS, MASK, words(b"ab")._replace(data=b"\x01\0\0\0a\x01\0\0\0b")),
            ["'words'", "expected 1 elements, got more", "from byte 5 on"],
        ),
        (
            with_inputs(IDS, MASK, words(b"a", b"b")._replace(data=b"\x01\0\0\0a")),
            ["'words'", "expected 2 elements, got 1"],
        ),
        (
            with_inputs(IDS, MASK, words(b"ab")._replace(data=b"\xff\xff\xff\xffab")),
            ["'words'", "4294967295 bytes announced"],
        ),
    ],
)
def test_a_malformed_request_is_refused_by_what_is_wrong_with_it(asked: InferRequest, expected: list[str]) -> None:
    text = refusal(asked)
    assert [each for each in expected if each not in text] == [], text


def test_a_refusal_begins_with_the_id_of_the_request_or_says_there_is_none() -> None:
    assert refusal(GOOD._replace(inputs=(), id="seven")).startswith("[request id: seven] expected ")
    assert refusal(GOOD._replace(inputs=())).startswith("[request id: <id_unknown>] expected ")


def test_a_request_with_every_fault_is_told_of_them_in_the_order_of_the_protocol() -> None:
    bad = InputTensor("mask", "FP16", (2, 99), b"")
    repairs = [
        ("unexpected inference output", GOOD._replace(requested_outputs=("w",), inputs=(bad,))),
        ("missing required input(s)", GOOD._replace(inputs=(bad,))),
        ("batch size does not match", with_inputs(IDS, bad)),
        ("data-type is 'FP16'", with_inputs(IDS, bad._replace(shape=(1, 99)))),
        ("unexpected shape", with_inputs(IDS, bad._replace(shape=(1, 99), datatype="INT64"))),
        ("must agree in dimension 'seq'", with_inputs(IDS, bad._replace(shape=(1, 9), datatype="INT64"))),
        ("byte size mismatch", with_inputs(IDS, bad._replace(shape=(1, 3), datatype="INT64"))),
    ]
    for expected, asked in repairs:
        assert expected in refusal(asked)


@pytest.mark.parametrize("shape", [(2, 2**62), (2, 2**63 - 1), (2, 2**40)])
def test_a_shape_whose_product_could_not_be_held_is_refused(shape: tuple[int, ...]) -> None:
    text = refusal(request(InputTensor("x", "FP32", shape, b"")), gate_of(WHOLE))
    assert "unexpected shape for input 'x'" in text


def test_an_optional_input_may_be_left_out_or_given() -> None:
    assert GATE.admit(GOOD).inputs.keys() == {"ids", "mask"}
    given_all = with_inputs(IDS, MASK, words(b"a", b""), tensor("pair", np.ones((1, 2), np.float32)))
    assert GATE.admit(given_all).inputs.keys() == {"ids", "mask", "words", "pair"}


def test_a_model_whose_inputs_are_all_optional_may_be_asked_with_none() -> None:
    gate = gate_of(Signature((spec("x", 2, optional=True),), (spec("y", 2),), max_batch_size=2))
    admitted = gate.admit(request())
    assert (admitted.inputs, admitted.rows) == ({}, 1)


def test_a_size_of_zero_is_an_empty_array_where_the_signature_allows_it() -> None:
    for asked in (words(), words()._replace(data=np.empty(0, np.object_))):
        assert GATE.admit(with_inputs(IDS, MASK, asked)).inputs["words"].shape == (1, 0)
    empty = InputTensor("x", "FP32", (2, 0), b"")
    assert gate_of(WHOLE).admit(request(empty)).inputs["x"].shape == (2, 0)


@pytest.mark.parametrize("data", [b"", np.empty(0, np.float32)])
def test_an_empty_array_too_large_to_be_addressed_is_refused(data: bytes | Array) -> None:
    gate = gate_of(Signature((spec("x", -1, -1, -1),), (spec("y", 1),)))
    assert "input 'x'" in refusal(request(InputTensor("x", "FP32", (2**40, 2**40, 0), data)), gate)


@pytest.mark.parametrize("offset", range(9))
def test_a_misaligned_payload_gives_the_right_values(offset: int) -> None:
    values = np.array([[7, -8, 2**40]], np.int64)
    payload = memoryview(bytes(offset) + values.tobytes())[offset:]
    array = GATE.admit(with_inputs(IDS._replace(data=payload), MASK)).inputs["ids"]
    assert array.tolist() == values.tolist()


def test_typed_contents_take_the_declared_shape() -> None:
    array = GATE.admit(with_inputs(IDS._replace(data=np.array([5, 6, 7])), MASK)).inputs["ids"]
    assert array.tolist() == [[5, 6, 7]]


def test_a_memoryview_of_a_payload_is_not_copied_where_it_is_aligned() -> None:
    payload = memoryview(np.arange(3, dtype=np.int64).tobytes())
    array = GATE.admit(with_inputs(IDS._replace(data=payload), MASK)).inputs["ids"]
    assert not array.flags.owndata
    assert not array.flags.writeable


sizes = st.integers(0, 4) | st.sampled_from([-1, 2**31, 2**40, 2**62, 2**63 - 1])


@st.composite
def claims(draw: st.DrawFn) -> tuple[DataType, InputTensor]:
    """What a model takes, and an input that may or may not be that, its payload often of a fitting size."""
    expected = draw(st.sampled_from(DataType))
    datatype = draw(st.just(expected.value) | st.sampled_from(DataType).map(lambda each: each.value) | st.text())
    shape = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
    count = math.prod(shape) if all(size in range(5) for size in shape) else draw(st.integers(0, 9))
    if draw(st.booleans()):
        return expected, InputTensor("x", datatype, shape, np.zeros(count, expected.numpy))
    if expected is DataType.BYTES and draw(st.booleans()):
        elements = draw(st.lists(st.binary(max_size=3), min_size=count, max_size=count))
        data = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
    else:
        length = draw(st.just(count * (expected.itemsize or 4)) | st.integers(0, 40))
        data = draw(st.binary(min_size=length, max_size=length))
    return expected, InputTensor("x", datatype, shape, draw(st.sampled_from([bytes, memoryview]))(data))


@given(claims(), st.integers(0, 4), st.integers(0, 3))
@example((DataType.FP32, InputTensor("x", "FP32", (2**40, 2**40, 0), np.zeros(0, np.float32))), 0, 3)
def test_any_input_is_refused_or_becomes_an_array_of_its_declared_shape_and_type(
    claim: tuple[DataType, InputTensor], max_batch_size: int, rank: int
) -> None:
    expected, given_tensor = claim
    gate = gate_of(Signature((spec("x", *[-1] * rank, datatype=expected),), (spec("y", 1),), max_batch_size))
    try:
        admitted = gate.admit(request(given_tensor))
    except InvalidRequest:
        return
    array = admitted.inputs["x"]
    assert given_tensor.datatype == expected.value
    assert (array.shape, array.dtype) == (given_tensor.shape, expected.numpy)
    assert admitted.rows == (given_tensor.shape[0] if max_batch_size else 1)
    if isinstance(given_tensor.data, bytes | memoryview) and expected is not DataType.BYTES:
        assert array.tobytes() == bytes(given_tensor.data)
