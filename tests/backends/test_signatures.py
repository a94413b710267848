"""Whether an artifact can serve a signature, apart from any backend."""

from pathlib import Path

import pytest
from tests.backends.cases import make_source

from preheat.backend import Dimension, PartialConfig, Signature, TensorSpec
from preheat.errors import InvalidConfig
from preheat.tensors import DataType
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor

BATCH = Dimension("batch", minimum=1, maximum=8)
EVEN = Dimension("length", minimum=2, maximum=64, multiple_of=2)
SOURCE = make_source(Path("repository/m"))
OUTPUTS = ArtifactSignature(
    (), tuple(ArtifactTensor(name, DataType.FP32, (BATCH, EVEN)) for name in ("OUTPUT__0", "OUTPUT__1"))
)


def declare(*axes: Dimension, max_batch_size: int = 8) -> Signature:
    return Signature((TensorSpec("x", DataType.FP32, axes),), (), max_batch_size)


def check(signature: Signature, *axes: Dimension) -> None:
    ArtifactSignature((ArtifactTensor("x", DataType.FP32, axes),), ()).check_inputs(SOURCE, signature)


@pytest.mark.parametrize(
    ("declared", "actual"),
    [
        (Dimension.fixed(4), EVEN),
        (EVEN, Dimension.fixed(4)),
        (Dimension(), EVEN),
        (Dimension(minimum=1, maximum=2), EVEN),
        (Dimension(minimum=64), EVEN),
    ],
    ids=str,
)
def test_axes_that_have_a_size_in_common_agree(declared: Dimension, actual: Dimension) -> None:
    check(declare(declared), BATCH, actual)


@pytest.mark.parametrize(
    ("declared", "actual"),
    [
        (Dimension.fixed(3), EVEN),
        (Dimension.fixed(4), Dimension.fixed(6)),
        (EVEN, Dimension.fixed(66)),
        (Dimension(minimum=65), EVEN),
        (Dimension(maximum=1), EVEN),
    ],
    ids=str,
)
def test_axes_that_have_none_are_refused(declared: Dimension, actual: Dimension) -> None:
    with pytest.raises(
        InvalidConfig, match=r"config\.pbtxt: input 'x': \[any\(1\.\.8\), .*; the artifact in .*m/1 has"
    ):
        check(declare(declared), BATCH, actual)


def test_a_model_that_does_not_batch_has_no_axis_before_its_shape() -> None:
    check(declare(BATCH, max_batch_size=0), BATCH)
    with pytest.raises(InvalidConfig, match="input 'x'"):
        check(declare(BATCH), BATCH)


@pytest.mark.parametrize(
    "batch", [Dimension.fixed(8), Dimension.fixed(1), Dimension(minimum=2), BATCH, Dimension(minimum=4, multiple_of=4)]
)
def test_an_axis_that_cannot_hold_every_batch_is_refused(batch: Dimension) -> None:
    with pytest.raises(InvalidConfig, match="input 'x': batches of 1 to 9; the artifact in"):
        check(declare(max_batch_size=9), batch)


def test_a_tensor_of_unknown_rank_serves_any_shape_but_only_its_datatype() -> None:
    unknown = ArtifactSignature((ArtifactTensor("x", DataType.FP32, None),), ())
    unknown.check_inputs(SOURCE, declare(EVEN))
    wrong = Signature((TensorSpec("x", DataType.INT8, ()),), ())
    with pytest.raises(InvalidConfig, match=r"input 'x': INT8; the artifact in .* has 'x' FP32 of any shape"):
        unknown.check_inputs(SOURCE, wrong)


def test_one_tensor_of_unknown_rank_leaves_its_side_to_the_configuration() -> None:
    known, unknown = ArtifactTensor("x", DataType.FP32, (EVEN,)), ArtifactTensor("y", DataType.FP32, None)
    partial = ArtifactSignature((known,), (known, unknown)).partial_config()
    assert partial == PartialConfig(inputs=(TensorSpec("x", DataType.FP32, (EVEN,)),))


def match(*names: str, by_position: bool) -> tuple[int, ...]:
    specs = tuple(TensorSpec(name, DataType.FP32, (EVEN,)) for name in names)
    return OUTPUTS.match_outputs(SOURCE, Signature((), specs, 8), by_position=by_position)


def test_outputs_are_matched_by_name_in_any_order_and_number() -> None:
    for by_position in (True, False):
        assert match("OUTPUT__1", "OUTPUT__0", by_position=by_position) == (1, 0)
        assert match("OUTPUT__1", by_position=by_position) == (1,)


def test_outputs_of_made_up_names_are_matched_by_position() -> None:
    assert match("logits", "pooled", by_position=True) == (0, 1)


@pytest.mark.parametrize(("names", "by_position"), [(("logits",), True), (("logits", "pooled"), False)])
def test_outputs_that_match_neither_way_are_refused(names: tuple[str, ...], by_position: bool) -> None:
    with pytest.raises(InvalidConfig, match=r"output 'logits': no such output; the artifact in .* has 'OUTPUT__0'"):
        match(*names, by_position=by_position)
