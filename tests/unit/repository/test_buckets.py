"""Which shapes are warmed, what they are padded with, and what cannot be."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import parameters_text, spec

from preheat.backend import Buckets, Dimension, Outside, PartialConfig
from preheat.errors import InvalidConfig
from preheat.repository.buckets import default_buckets
from preheat.repository.completion import CompletedConfiguration, complete
from preheat.repository.configuration import parse_configuration
from preheat.tensors import DataType

BATCH, SEQUENCE = Dimension("batch", 1, 64), Dimension("sequence", 1, 512)
BERT = PartialConfig(
    (spec("ids", BATCH, SEQUENCE, datatype=DataType.INT64), spec("mask", BATCH, SEQUENCE, datatype=DataType.INT64)),
    (spec("pooled", BATCH, 384), spec("tokens", BATCH, Dimension("other", 1), 384)),
)
DEPENDENT = PartialConfig(BERT.inputs, BERT.outputs, row_independent=False)
SIZES = {"preheat.buckets.sequence": "16,64", "preheat.pad.ids": "0", "preheat.pad.mask": "0"}


def completed(
    parameters: Mapping[str, str], artifact: PartialConfig = BERT, *, text: str = "max_batch_size: 6"
) -> CompletedConfiguration:
    whole = f'backend: "eager" {text} {parameters_text(parameters)}'
    return complete(parse_configuration(whole, Path("repository/bert")), artifact)


def refusal(parameters: Mapping[str, str], artifact: PartialConfig = BERT, *, text: str = "max_batch_size: 6") -> str:
    with pytest.raises(InvalidConfig) as caught:
        completed(parameters, artifact, text=text)
    message = str(caught.value)
    assert message.startswith("repository/bert/config.pbtxt: ")
    return message.removeprefix("repository/bert/config.pbtxt: ")


def without(key: str) -> Mapping[str, str]:
    return {each: value for each, value in SIZES.items() if each != key}


def padded_input(datatype: DataType) -> PartialConfig:
    return PartialConfig((spec("x", SEQUENCE, datatype=datatype),), (spec("y", 1),))


@given(st.integers(1, 5000))
def test_default_buckets_are_the_powers_of_two_up_to_the_largest_batch_and_it(max_batch_size: int) -> None:
    buckets = default_buckets(max_batch_size)
    powers = [1 << exponent for exponent in range(13) if 1 << exponent < max_batch_size]
    assert buckets == (*powers, max_batch_size)


def test_a_model_without_a_batch_axis_has_no_buckets_of_rows() -> None:
    assert default_buckets(0) == ()
    assert completed({}, text="").buckets == Buckets()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Buckets((1, 2, 4, 6))),
        ({"preheat.buckets": "6,3"}, Buckets((3, 6))),
        (SIZES, Buckets((1, 2, 4, 6), {"sequence": (16, 64)})),
        ({**SIZES, "preheat.outside_buckets": "eager"}, Buckets((1, 2, 4, 6), {"sequence": (16, 64)}, Outside.EAGER)),
        ({**SIZES, "preheat.buckets": "6"}, Buckets((6,), {"sequence": (16, 64)})),
    ],
)
def test_the_buckets_are_the_configurations_or_else_powers_of_two_of_rows(
    parameters: Mapping[str, str], expected: Buckets
) -> None:
    assert completed(parameters).buckets == expected


def test_inputs_without_an_axis_that_has_buckets_need_no_pad_value() -> None:
    artifact = PartialConfig((*BERT.inputs, spec("bias", BATCH, 3)), BERT.outputs)
    assert completed(SIZES, artifact).pad_values == {"ids": 0, "mask": 0}
    assert completed({}).pad_values == {}


@pytest.mark.parametrize(
    ("datatype", "text", "expected"),
    [
        (DataType.INT64, "-7", -7),
        (DataType.INT8, "127", 127),
        (DataType.UINT8, "255", 255),
        (DataType.FP32, "0.5", 0.5),
        (DataType.FP16, "-1e4", -10000.0),
        (DataType.BF16, "1", 1.0),
        (DataType.FP32, "-inf", float("-inf")),
        (DataType.BOOL, "true", True),
        (DataType.BOOL, "false", False),
        (DataType.BYTES, "", b""),
        (DataType.BYTES, "é [PAD]", "é [PAD]".encode()),
    ],
)
def test_a_pad_value_is_one_of_its_inputs_datatype(
    datatype: DataType, text: str, expected: bool | int | float | bytes
) -> None:
    made = completed({"preheat.buckets.sequence": "16", "preheat.pad.x": text}, padded_input(datatype), text="")
    value = made.pad_values["x"]
    assert (type(value), value) == (type(expected), expected)


@pytest.mark.parametrize(
    ("datatype", "text"),
    [
        (DataType.INT64, "0.5"),
        (DataType.INT64, ""),
        (DataType.INT64, str(2**63)),
        (DataType.INT8, "128"),
        (DataType.UINT8, "-1"),
        (DataType.FP32, "zero"),
        (DataType.FP32, "1e39"),
        (DataType.FP16, "-7e4"),
        (DataType.BF16, "1e39"),
        (DataType.BF16, ""),
        (DataType.BOOL, "1"),
        (DataType.BOOL, "True"),
    ],
)
def test_a_pad_value_that_is_none_of_its_inputs_datatype_is_refused_by_that(datatype: DataType, text: str) -> None:
    parameters = {"preheat.buckets.sequence": "16", "preheat.pad.x": text}
    assert refusal(parameters, padded_input(datatype), text="") == (
        f"parameters: preheat.pad.x: {text!r}: must be a value of {datatype.value}"
    )


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"preheat.buckets": "2,4"}, "preheat.buckets: the largest must be max_batch_size, 6, it is 4"),
        ({"preheat.buckets": "4,8"}, "preheat.buckets: the largest must be max_batch_size, 6, it is 8"),
        (
            {**SIZES, "preheat.buckets.sequence": "16,513"},
            "preheat.buckets.sequence: 513: the dimension is sequence(1..512)",
        ),
        (
            {**SIZES, "preheat.buckets.width": "16"},
            "preheat.buckets.width: no input has a varying dimension of that name; there are ['sequence']; "
            "parameter preheat.shape.INPUT names an input's dimensions",
        ),
        # An output's alone: nothing of a request is padded.
        (
            {**SIZES, "preheat.buckets.other": "16"},
            "preheat.buckets.other: no input has a varying dimension of that name; there are ['sequence']; "
            "parameter preheat.shape.INPUT names an input's dimensions",
        ),
        (
            {**SIZES, "preheat.dimension.sequence": "32..512/32", "preheat.buckets.sequence": "32,48"},
            "preheat.buckets.sequence: 48: the dimension is sequence(32..512 in steps of 32)",
        ),
        (
            {**SIZES, "preheat.dimension.sequence": "16..16"},
            "preheat.buckets.sequence: no input has a varying dimension of that name; there are []; "
            "parameter preheat.shape.INPUT names an input's dimensions",
        ),
        (
            without("preheat.pad.mask"),
            "preheat.pad.mask: not set, and input 'mask' has an axis with buckets; say what it is padded with, such as "
            "0",
        ),
        (
            {**SIZES, "preheat.pad.pooled": "0"},
            "preheat.pad.pooled: no input of that name has an axis with buckets, only ['ids', 'mask'] have; list "
            "the sizes in preheat.buckets.NAME",
        ),
        (
            {"preheat.pad.ids": "0"},
            "preheat.pad.ids: no input of that name has an axis with buckets, only [] have; list "
            "the sizes in preheat.buckets.NAME",
        ),
        (
            {"preheat.outside_buckets": "refuse"},
            "preheat.outside_buckets: no dimension has buckets; set preheat.buckets.NAME",
        ),
        (
            {"preheat.padding_tolerance": "0.0"},
            "preheat.padding_tolerance: no dimension has buckets; set preheat.buckets.NAME",
        ),
    ],
)
def test_buckets_that_no_request_could_have_or_that_miss_something_are_refused_by_key_and_what_is_possible(
    parameters: Mapping[str, str], expected: str
) -> None:
    assert refusal(parameters) == f"parameters: {expected}"


ACCEPTED = {"preheat.accept_row_dependence": "true"}
DECLARED = {"preheat.row_independent": "false"}


@pytest.mark.parametrize(("parameters", "artifact"), [({}, DEPENDENT), (DECLARED, BERT), (DECLARED, DEPENDENT)])
def test_every_size_is_a_bucket_where_a_row_of_padding_would_change_the_answers(
    parameters: Mapping[str, str], artifact: PartialConfig
) -> None:
    made = completed(parameters, artifact)
    assert made.buckets.rows == (1, 2, 3, 4, 5, 6)
    assert not made.signature.row_independent
    assert completed({**parameters, "preheat.buckets": "1,2,3,4,5,6"}, artifact).buckets == made.buckets
    assert completed(parameters, artifact, text="").buckets.rows == ()


@pytest.mark.parametrize(("parameters", "artifact"), [({}, DEPENDENT), (DECLARED, BERT)])
def test_buckets_between_which_rows_would_be_padded_are_refused_where_that_changes_the_answers(
    parameters: Mapping[str, str], artifact: PartialConfig
) -> None:
    text = refusal({**parameters, "preheat.buckets": "1,6"}, artifact)
    assert text.startswith(
        "parameters: preheat.buckets: each answer of this model depends on the rows it shares a batch"
    )
    assert "every size from 1 to 6 is a bucket of its own" in text
    assert "preheat.accept_row_dependence: true" in text


def test_who_accepts_that_rows_depend_on_each_other_may_have_any_buckets() -> None:
    assert completed(ACCEPTED, DEPENDENT).buckets.rows == (1, 2, 4, 6)
    assert completed({**ACCEPTED, "preheat.buckets": "6"}, DEPENDENT).buckets.rows == (6,)


def test_a_file_cannot_call_rows_independent_of_which_the_artifact_says_they_are_not() -> None:
    independent = {"preheat.row_independent": "true"}
    assert completed(independent).signature.row_independent
    assert refusal(independent, DEPENDENT).startswith(
        "parameters: preheat.row_independent: true: the artifact says that its answers depend on the rows they share a "
        "batch with"
    )


def test_a_file_that_calls_rows_dependent_has_to_accept_batching_them() -> None:
    batching = "max_batch_size: 6 dynamic_batching {}"
    assert refusal(DECLARED, text=batching).startswith(
        "dynamic_batching: each answer of this model depends on the rows"
    )
    assert completed({**DECLARED, **ACCEPTED}, text=batching).buckets.rows == (1, 2, 4, 6)


@pytest.mark.parametrize(("parameters", "artifact"), [({}, DEPENDENT), (DECLARED, BERT)])
def test_the_effective_configuration_shows_that_rows_depend_on_each_other(
    parameters: Mapping[str, str], artifact: PartialConfig
) -> None:
    made = completed(parameters, artifact)
    assert made.proto.parameters["preheat.row_independent"].string_value == "false"
    assert "parameters" in made.origins


def test_the_effective_configuration_says_nothing_of_rows_that_do_not() -> None:
    assert not completed({}).proto.parameters


def test_a_sample_that_no_bucket_holds_is_refused_where_such_requests_are() -> None:
    warmup = "".join(
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_INT64 dims: [ 65 ] zero_data: true }} }} '
        for name in ("ids", "mask")
    )
    text = f'max_batch_size: 6 model_warmup {{ name: "long" batch_size: 1 {warmup} }}'
    assert "model_warmup 'long': dimension 'sequence' is 65, which is beyond every bucket: 16, 64" in refusal(
        SIZES, text=text
    )
    completed({**SIZES, "preheat.outside_buckets": "compile"}, text=text)


@pytest.mark.parametrize("key", ["preheat.buckets.", "preheat.threads."])
def test_a_key_that_ends_with_a_dot_names_nothing(key: str) -> None:
    assert "unknown parameter" in refusal({key: "2"})


def test_row_dependence_that_the_artifact_states_has_the_artifact_for_its_origin() -> None:
    assert completed({}, DEPENDENT).origins["parameters"] == "the artifact"
