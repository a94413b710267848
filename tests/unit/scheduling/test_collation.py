"""Joining and cutting apart are inverses, padding is a real row, and a model's broken promise is caught by name."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.unit.builders import spec

from preheat.backend import Dimension, Signature
from preheat.errors import ExecutionFailed
from preheat.scheduling.collation import OutputCheck, bucket_for, collate, cut
from preheat.tensors import Array, DataType, Tensors

SIGNATURE = Signature(
    inputs=(spec("ids", Dimension("seq"), datatype=DataType.INT64),),
    outputs=(spec("pooled", 2), spec("tokens", Dimension("seq"), 2)),
    max_batch_size=8,
)
CHECK = OutputCheck("bert", SIGNATURE)
INPUTS = {"ids": np.zeros((3, 5), np.int64)}
OUTPUTS = {"pooled": np.zeros((3, 2), np.float32), "tokens": np.zeros((3, 5, 2), np.float32)}


@st.composite
def batches(draw: st.DrawFn) -> list[Tensors]:
    """Parts that may share a batch: the same tensors and row shapes, any rows of their own."""
    rows = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    layout = [
        (f"tensor {position}", datatype, draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)))
        for position, datatype in enumerate(draw(st.lists(st.sampled_from(DataType), min_size=1, max_size=3)))
    ]
    return [{name: draw(arrays(datatype, (count, *shape))) for name, datatype, shape in layout} for count in rows]


def arrays(datatype: DataType, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    if datatype is DataType.BYTES:
        return hnp.arrays(np.object_, shape, elements=st.binary(max_size=3))
    numbers = st.integers(0, 1) if datatype is DataType.BOOL else st.integers(0, 100)
    return hnp.arrays(np.int64, shape, elements=numbers).map(lambda array: array.astype(datatype.numpy))


def rows_of(part: Tensors) -> int:
    return len(next(iter(part.values())))


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert array.tolist() == theirs[name].tolist()


@given(batches(), st.integers(0, 3))
def test_cutting_a_batch_gives_back_the_parts_that_were_joined(parts: Sequence[Tensors], padding: int) -> None:
    rows = [rows_of(part) for part in parts]
    joined = collate(parts, sum(rows) + padding)
    assert all(array.shape[0] == sum(rows) + padding for array in joined.values())
    for part, (start, stop) in zip(parts, pairwise(accumulate(rows, initial=0)), strict=True):
        assert_equal(cut(joined, start, stop), part)


@given(batches(), st.integers(1, 3))
def test_padding_repeats_a_real_row(parts: Sequence[Tensors], padding: int) -> None:
    rows = sum(rows_of(part) for part in parts)
    joined = collate(parts, rows + padding)
    for row in range(rows, rows + padding):
        assert_equal(cut(joined, row, row + 1), cut(parts[0], 0, 1))


@given(batches())
def test_every_joined_array_is_contiguous(parts: Sequence[Tensors]) -> None:
    joined = collate(parts, 30)
    assert all(array.flags.c_contiguous for array in joined.values())


def test_a_lone_part_that_needs_no_padding_is_not_copied() -> None:
    assert collate([INPUTS], 3)["ids"] is INPUTS["ids"]
    assert collate([INPUTS], 4)["ids"] is not INPUTS["ids"]


def test_cutting_copies_nothing() -> None:
    assert np.shares_memory(cut(OUTPUTS, 1, 2)["tokens"], OUTPUTS["tokens"])


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_a_batch_takes_the_smallest_bucket_that_holds_it(rows: int, expected: int) -> None:
    assert bucket_for(rows, (1, 2, 4, 6)) == expected


def test_without_buckets_a_batch_keeps_its_size() -> None:
    assert bucket_for(5, ()) == 5


def test_outputs_as_promised_pass_and_others_are_left_out() -> None:
    extra = np.zeros(1)
    assert CHECK.check({**OUTPUTS, "extra": extra}, INPUTS, 3).keys() == {"pooled", "tokens"}


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("pooled", None, "model 'bert' gave no output 'pooled'"),
        ("pooled", np.zeros((3, 2)), "output 'pooled' of model 'bert' is float64, its signature says FP32"),
        ("pooled", np.zeros((2, 2), np.float32), "output 'pooled' of model 'bert' has 2 rows for a batch of 3"),
        ("pooled", np.zeros((4, 2), np.float32), "has 4 rows for a batch of 3"),
        ("pooled", np.float32(0) * np.zeros((), np.float32), "has none rows for a batch of 3"),
        ("pooled", np.zeros((3, 3), np.float32), "has shape [3] for each row and should have [2]"),
        ("pooled", np.zeros((3,), np.float32), "has shape [] for each row and should have [2]"),
        ("tokens", np.zeros((3, 4, 2), np.float32), "has shape [4, 2] for each row and should have [5, 2]"),
    ],
)
def test_outputs_that_break_the_signature_fail_by_name(name: str, array: Array | None, expected: str) -> None:
    outputs = {key: value for key, value in {**OUTPUTS, name: array}.items() if value is not None}
    with pytest.raises(ExecutionFailed) as caught:
        CHECK.check(outputs, INPUTS, 3)
    assert expected in str(caught.value)


def test_a_model_without_a_batch_axis_has_its_whole_shape_checked() -> None:
    check = OutputCheck("m", Signature((), (spec("y", 2, -1),)))
    check.check({"y": np.zeros((2, 7), np.float32)}, {}, None)
    with pytest.raises(ExecutionFailed, match=r"has shape \[3, 7\] and should have \[2, any\(0\.\.\)\]"):
        check.check({"y": np.zeros((3, 7), np.float32)}, {}, None)


def test_an_output_axis_whose_input_was_left_out_may_have_any_allowed_size() -> None:
    CHECK.check({**OUTPUTS, "tokens": np.zeros((3, 9, 2), np.float32)}, {}, 3)
