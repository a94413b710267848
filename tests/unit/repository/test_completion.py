"""What the file leaves open comes from the artifact, then from defaults; where the two disagree, both are named."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.builders import parameters_text, spec

from preheat.backend import Dimension, PartialConfig, TensorSpec
from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.completion import CompletedConfiguration, complete
from preheat.repository.configuration import parse_configuration
from preheat.tensors import DataType

BATCH = Dimension("batch", 1, 64)
SEQ = Dimension("seq", 1, 512)
# As an artifact says it: shapes are whole.
IDS = spec("ids", BATCH, SEQ, datatype=DataType.INT64)
MASK = spec("mask", BATCH, SEQ, datatype=DataType.INT64)
POOLED = spec("pooled", BATCH, 384)
BERT = PartialConfig((IDS, MASK), (POOLED,))
INPUTS = """
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }
"""
OUTPUTS = 'output { name: "pooled" data_type: TYPE_FP32 dims: [ 384 ] }'


def completed(text: str, artifact: PartialConfig = BERT) -> CompletedConfiguration:
    return complete(parse_configuration(f'backend: "eager" {text}', Path("repository/bert")), artifact)


def refusal(text: str, artifact: PartialConfig = BERT) -> str:
    with pytest.raises(InvalidConfig) as caught:
        completed(text, artifact)
    message = str(caught.value)
    assert message.startswith("repository/bert/config.pbtxt: ")
    return message.removeprefix("repository/bert/config.pbtxt: ")


def shape(made: CompletedConfiguration, name: str) -> tuple[Dimension, ...]:
    return next(each.shape for each in (*made.signature.inputs, *made.signature.outputs) if each.name == name)


def test_an_artifact_that_says_everything_needs_no_file() -> None:
    made = completed("")
    assert (made.signature.inputs, made.signature.outputs) == ((IDS, MASK), (POOLED,))
    assert made.signature.max_batch_size == 0


def test_a_model_that_is_to_batch_takes_the_artifacts_first_axis_for_its_rows() -> None:
    made = completed("max_batch_size: 8")
    assert (shape(made, "ids"), shape(made, "pooled")) == ((SEQ,), (Dimension.fixed(384),))
    assert made.signature.max_batch_size == 8


def test_a_file_that_says_everything_needs_no_word_of_the_artifact() -> None:
    made = completed(f"max_batch_size: 8 {INPUTS} {OUTPUTS}", PartialConfig())
    assert shape(made, "ids") == (Dimension(minimum=1),)


def test_a_declared_minus_one_takes_the_artifacts_name_and_bounds() -> None:
    assert shape(completed(f"max_batch_size: 8 {INPUTS}"), "ids") == (SEQ,)


def test_a_size_that_the_file_fixes_is_fixed_for_all_who_share_the_axis() -> None:
    declared = INPUTS.replace("[ -1 ]", "[ 16 ]", 1)
    made = completed(f"max_batch_size: 8 {declared}")
    (axis,), (other,) = shape(made, "ids"), shape(made, "mask")
    assert axis.size == 16
    # Either the other is fixed as well, or the two keep the name by which requests are held to it.
    assert other.size == 16 or (axis.name is not None and axis.name == other.name)


def test_inputs_that_the_artifact_can_do_without_may_be_left_out() -> None:
    artifact = PartialConfig((IDS, spec("type", BATCH, SEQ, optional=True)), (POOLED,))
    made = completed('max_batch_size: 8 input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }', artifact)
    assert [each.name for each in made.signature.inputs] == ["ids"]


def test_outputs_that_nobody_declares_are_left_out() -> None:
    artifact = PartialConfig((IDS,), (POOLED, spec("tokens", BATCH, SEQ, 384)))
    made = completed(f"max_batch_size: 8 {OUTPUTS}", artifact)
    assert [each.name for each in made.signature.outputs] == ["pooled"]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
def test_an_input_is_optional_if_file_and_artifact_agree_that_it_is(ours: bool, theirs: bool) -> None:
    declared = f'input {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] optional: {str(ours).lower()} }}'
    made = completed(declared, PartialConfig((spec("x", 2, optional=theirs),), (spec("y", 2),)))
    assert made.signature.inputs[0].optional == (ours and theirs)
    assert made.proto.input[0].optional == (ours and theirs)


def test_outputs_that_an_artifact_can_only_number_take_the_declared_names_in_order() -> None:
    artifact = PartialConfig((IDS,), (spec("OUTPUT__0", BATCH, 384), spec("OUTPUT__1", BATCH, 2)))
    declared = (
        'output { name: "b" data_type: TYPE_FP32 dims: [ 384 ] } output { name: "a" data_type: TYPE_FP32 dims: [ 2 ] }'
    )
    made = completed(f"max_batch_size: 8 {declared}", artifact)
    assert [(each.name, each.shape[0].size) for each in made.signature.outputs] == [("b", 384), ("a", 2)]


@pytest.mark.parametrize(
    ("text", "artifact", "expected"),
    [
        ("", PartialConfig(), "input: not set, and the artifact does not say; declare every input"),
        (INPUTS, PartialConfig(), "output: not set, and the artifact does not say; declare every output"),
        (
            'input { name: "idz" data_type: TYPE_INT64 dims: [ -1 ] }',
            BERT,
            "input 'idz': the artifact has no such input; it has ['ids', 'mask']",
        ),
        (
            'max_batch_size: 8 input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }',
            BERT,
            "input: the artifact also needs ['mask']; declare them too",
        ),
        (
            'output { name: "logits" data_type: TYPE_FP32 dims: [ 2 ] }',
            BERT,
            "output 'logits': the artifact has no such output; it has ['pooled']",
        ),
        (
            f"max_batch_size: 8 {OUTPUTS.replace('FP32', 'FP16')}",
            BERT,
            "output 'pooled': data_type: TYPE_FP16: the artifact's is TYPE_FP32",
        ),
        (
            f"max_batch_size: 8 {OUTPUTS.replace('384', '384, 1')}",
            BERT,
            "output 'pooled': dims: 2 dimensions, the artifact has 1 after the batch: [384]",
        ),
        (OUTPUTS, BERT, "output 'pooled': dims: 1 dimensions, the artifact has 2: [batch(1..64), 384]"),
        (
            f"max_batch_size: 8 {OUTPUTS.replace('384', '768')}",
            BERT,
            "output 'pooled': dims[0]: 768: the artifact has 384",
        ),
        (
            f"max_batch_size: 8 {INPUTS.replace('[ -1 ]', '[ 513 ]')}",
            BERT,
            "input 'ids': dims[0]: 513: the artifact has seq(1..512)",
        ),
        (
            "max_batch_size: 65",
            BERT,
            "max_batch_size: 65: input 'ids' of the artifact has batch(1..64) as its first dimension, which cannot be "
            "65; set max_batch_size: 64",
        ),
        (
            "max_batch_size: 8",
            PartialConfig((spec("x", 1, 3),), (spec("y", 1),)),
            "max_batch_size: 8: input 'x' of the artifact has 1 as its first dimension, which cannot be 8; "
            "set max_batch_size: 1",
        ),
        (
            "max_batch_size: 8",
            PartialConfig((spec("x", 4, 3),), (spec("y", 4),)),
            "max_batch_size: 8: input 'x' of the artifact has 4 as its first dimension, which cannot be 1; "
            "set max_batch_size: 0",
        ),
        (
            "max_batch_size: 1",
            PartialConfig((spec("x"),), (spec("y", 4),)),
            "max_batch_size: 1: input 'x' of the artifact has no dimensions; set max_batch_size: 0",
        ),
        (
            "max_batch_size: 8" + parameters_text({"preheat.buckets": "2,4"}),
            BERT,
            "parameters: preheat.buckets: the largest must be max_batch_size, 8, it is 4",
        ),
        (
            "max_batch_size: 8" + parameters_text({"preheat.shape.idz": "seq"}),
            BERT,
            "parameters: preheat.shape.idz: no such tensor; there are ['ids', 'mask', 'pooled']",
        ),
        (
            "max_batch_size: 8" + parameters_text({"preheat.shape.ids": "a,b"}),
            BERT,
            "input 'ids': preheat.shape names 2 dimensions, the artifact has 1",
        ),
        (
            "max_batch_size: 8" + parameters_text({"preheat.dimension.sequence": "1..8"}),
            BERT,
            "parameters: preheat.dimension.sequence: no tensor has an axis of that name; there are ['seq']",
        ),
        (
            "max_batch_size: 8" + parameters_text({"preheat.dimension.seq": "600.."}),
            BERT,
            "input 'ids': seq(600..): the artifact has seq(1..512)",
        ),
        (
            "max_batch_size: 8 dynamic_batching {}",
            PartialConfig((IDS,), (POOLED,), row_independent=False),
            "dynamic_batching: each answer of this model depends on the rows it shares a batch with; remove "
            "dynamic_batching, or accept that with parameter preheat.accept_row_dependence: true",
        ),
    ],
)
def test_what_disagrees_is_refused_by_key_and_by_what_each_side_says(
    text: str, artifact: PartialConfig, expected: str
) -> None:
    assert refusal(text, artifact) == expected


def test_a_model_whose_rows_depend_on_each_other_batches_when_that_is_accepted_or_not_at_all() -> None:
    artifact = PartialConfig((IDS,), (POOLED,), row_independent=False)
    accepted = parameters_text({"preheat.accept_row_dependence": "true"})
    for text in ("max_batch_size: 8", f"max_batch_size: 8 dynamic_batching {{}} {accepted}"):
        assert not completed(text, artifact).signature.row_independent


@pytest.mark.parametrize("declared", ["", INPUTS], ids=["undeclared", "declared"])
def test_a_bound_in_the_file_narrows_an_axis_that_the_artifact_names(declared: str) -> None:
    made = completed(f"max_batch_size: 8 {declared}" + parameters_text({"preheat.dimension.seq": "2..128"}))
    assert [shape(made, name) for name in ("ids", "mask")] == [(Dimension("seq", 2, 128),)] * 2


@pytest.mark.parametrize("declared", ["", INPUTS], ids=["undeclared", "declared"])
def test_a_name_in_the_file_goes_to_all_axes_that_the_artifact_ties_together(declared: str) -> None:
    names = parameters_text({"preheat.shape.ids": "length", "preheat.dimension.length": "1..99"})
    made = completed(f"max_batch_size: 8 {declared}" + names)
    assert shape(made, "ids") == shape(made, "mask") == (Dimension("length", 1, 99),)


def test_two_names_for_axes_that_the_artifact_ties_together_are_refused() -> None:
    names = parameters_text({"preheat.shape.ids": "length", "preheat.shape.mask": "width"})
    with pytest.raises(InvalidConfig, match=r"preheat\.shape\.mask: 'width': .* use one name"):
        completed("max_batch_size: 8" + names)


def test_a_size_fixed_for_one_axis_is_fixed_for_those_tied_to_it() -> None:
    fixed = INPUTS.replace("dims: [ -1 ]", "dims: [ 16 ]", 1)
    made = completed(f"max_batch_size: 8 {fixed}")
    assert [axis.size for name in ("ids", "mask") for axis in shape(made, name)] == [16, 16]


@st.composite
def axes(draw: st.DrawFn) -> Dimension:
    """Axes that vary or not, as an artifact or a file may bound them; each has a size."""
    step = draw(st.integers(1, 6))
    size = draw(st.integers(1, 8)) * step
    return Dimension("n", draw(st.integers(1, size)), draw(st.none() | st.integers(size, size + 9)), step)


@given(axes(), axes())
@example(Dimension("n", 1, None, 4), Dimension("n", 1, None, 6))
@example(Dimension("n", 1, 3), Dimension("n", 1, 8, 4))
@example(Dimension("n", 1, 8), Dimension("n", 9, 9))
def test_a_merged_axis_allows_just_what_file_and_artifact_both_allow(ours: Dimension, theirs: Dimension) -> None:
    maximum = "" if ours.maximum is None else ours.maximum
    bounds = parameters_text({"preheat.dimension.n": f"{ours.minimum}..{maximum}/{ours.multiple_of}"})
    artifact = PartialConfig((TensorSpec("x", DataType.FP32, (theirs,)),), (spec("y", 1),))
    both = [size for size in range(1, 100) if ours.allows(size) and theirs.allows(size)]
    try:
        (merged,) = shape(completed(bounds, artifact), "x")
    except InvalidConfig:
        assert both == []
        return
    assert both == [size for size in range(1, 100) if merged.allows(size)] != []


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ('inputs { key: "z" value { data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } }', "inputs: unknown ['z']"),
        ("", "inputs: ['x'] missing"),
        (
            'inputs { key: "x" value { data_type: TYPE_INT32 dims: [ 2 ] zero_data: true } }',
            "inputs 'x': data_type: must be TYPE_FP32",
        ),
        (
            'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3 ] zero_data: true } }',
            "inputs 'x': dims: [3]: must be [2]",
        ),
        (
            'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2, 1 ] zero_data: true } }',
            "inputs 'x': dims: [2, 1]: must be [2]",
        ),
    ],
)
def test_a_sample_that_would_not_be_admitted_is_refused(sample: str, expected: str) -> None:
    artifact = PartialConfig((spec("x", 2), spec("extra", 1, optional=True)), (spec("y", 2),))
    assert refusal(f'model_warmup {{ name: "s" {sample} }}', artifact).startswith(f"model_warmup 's': {expected}")


def test_the_configuration_that_clients_see_is_whole_and_says_where_each_field_is_from() -> None:
    made = completed("max_batch_size: 8 instance_group { kind: KIND_CPU }")
    assert (made.proto.name, made.proto.backend, made.proto.max_batch_size) == ("bert", "eager", 8)
    assert [(each.name, each.data_type, list(each.dims)) for each in made.proto.input] == [
        ("ids", pb.TYPE_INT64, [-1]),
        ("mask", pb.TYPE_INT64, [-1]),
    ]
    assert list(made.proto.output[0].dims) == [384]
    assert made.proto.version_policy.latest.num_versions == 1
    assert made.proto.instance_group[0].count == 1
    assert made.origins == {
        "name": "default",
        "backend": "config.pbtxt",
        "max_batch_size": "config.pbtxt",
        "input": "the artifact",
        "output": "the artifact",
        "instance_group": "config.pbtxt",
        "version_policy": "default",
    }
    assert {field.name for field, _ in made.proto.ListFields()} == made.origins.keys()


def test_what_the_file_says_of_a_tensor_beyond_type_and_dims_is_kept() -> None:
    declared = OUTPUTS.replace("dims", 'label_filename: "labels.txt" dims')
    assert completed(f"max_batch_size: 8 {declared}").proto.output[0].label_filename == "labels.txt"


def test_the_configuration_as_parsed_is_left_alone() -> None:
    configuration = parse_configuration('backend: "eager"', Path("repository/bert"))
    complete(configuration, BERT)
    assert not configuration.proto.input
    assert not configuration.proto.HasField("version_policy")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preheat.buckets", "1,8"),
        ("preheat.buckets.seq", "32"),
        ("preheat.pad.ids", "0"),
        ("preheat.outside_buckets", "eager"),
        ("preheat.padding_tolerance", "0.1"),
        ("preheat.threads", "1"),
    ],
)
def test_what_the_server_cannot_do_for_requests_that_are_seen_whole_is_refused_by_name(key: str, value: str) -> None:
    artifact = PartialConfig((IDS, MASK), (POOLED,), whole_requests=True)
    message = refusal(f"max_batch_size: 8 {parameters_text({key: value})}", artifact)
    assert message == (
        f"parameters: {key}: has no effect on a model that sees requests whole, as backend 'eager' has it do; "
        "leave it out"
    )


def test_outputs_that_a_canary_is_to_compare_must_exist() -> None:
    assert refusal(parameters_text({"preheat.canary.outputs": "pooled,pool"})) == (
        "parameters: preheat.canary.outputs: no such outputs: ['pool']; there are ['pooled']"
    )
    completed(parameters_text({"preheat.canary.outputs": "pooled"}))
