"""A model's broken promise is caught by name, before it can reach who asked."""

import numpy as np
import pytest
from tests.unit.builders import spec

from preheat.backend import Dimension, Signature
from preheat.errors import ExecutionFailed
from preheat.scheduling.output_check import OutputCheck
from preheat.tensors import Array, DataType

SIGNATURE = Signature(
    inputs=(spec("ids", Dimension("seq"), datatype=DataType.INT64),),
    outputs=(spec("pooled", 2), spec("tokens", Dimension("seq"), 2)),
    max_batch_size=8,
)
CHECK = OutputCheck("bert", SIGNATURE)
INPUTS = {"ids": np.zeros((3, 5), np.int64)}
OUTPUTS = {"pooled": np.zeros((3, 2), np.float32), "tokens": np.zeros((3, 5, 2), np.float32)}


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


def test_what_are_no_outputs_by_name_is_said_to_be_none() -> None:
    for wrong in (np.zeros(3), [1], None):
        with pytest.raises(ExecutionFailed, match=f"gave {type(wrong).__name__} instead of outputs"):
            CHECK.check(wrong, INPUTS, 3)  # type: ignore[arg-type]


def test_a_model_without_a_batch_axis_has_its_whole_shape_checked() -> None:
    check = OutputCheck("m", Signature((), (spec("y", 2, -1),)))
    check.check({"y": np.zeros((2, 7), np.float32)}, {}, None)
    with pytest.raises(ExecutionFailed, match=r"has shape \[3, 7\] and should have \[2, any\(0\.\.\)\]"):
        check.check({"y": np.zeros((3, 7), np.float32)}, {}, None)


def test_an_output_axis_whose_input_was_left_out_may_have_any_allowed_size() -> None:
    CHECK.check({**OUTPUTS, "tokens": np.zeros((3, 9, 2), np.float32)}, {}, 3)
