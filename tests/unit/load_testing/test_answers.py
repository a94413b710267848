"""What is an answer and what is not."""

from types import SimpleNamespace
from typing import Any

import pytest
from loadtests.answers import WrongAnswer, check_answer
from loadtests.model import Model, Tensor

MODEL = Model("m", "", 8, {}, {"y": Tensor("y", "FP32", (-1, 2))})


def answer(
    *, shape: tuple[int, ...] = (3, 5, 2), datatype: str = "FP32", name: str = "y", raw: bytes | None = bytes(120)
) -> Any:
    """A ModelInferResponse to request 7 of three rows."""
    output = SimpleNamespace(name=name, datatype=datatype, shape=shape)
    return SimpleNamespace(id="7", outputs=[output], raw_output_contents=[] if raw is None else [raw])


def test_an_answer_in_order_passes() -> None:
    check_answer(answer(), MODEL, request_id="7", rows=3)


def test_an_answer_without_a_batch_axis_passes_for_a_model_without_one() -> None:
    check_answer(answer(shape=(15, 2)), MODEL, request_id="7", rows=None)


def test_the_size_of_words_is_not_known() -> None:
    model = Model("m", "", 8, {}, {"y": Tensor("y", "BYTES", (1,))})
    check_answer(answer(shape=(3, 1), datatype="BYTES", raw=bytes(99)), model, request_id="7", rows=3)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (answer(shape=(2, 5, 2), raw=bytes(80)), "has shape [2, 5, 2], not [3, -1, 2]"),
        (answer(shape=(3, 2), raw=bytes(24)), "has shape [3, 2], not [3, -1, 2]"),
        (answer(shape=(3, 5, 4), raw=bytes(240)), "has shape [3, 5, 4], not [3, -1, 2]"),
        (answer(datatype="FP64", raw=bytes(240)), "is FP64, not FP32"),
        (answer(raw=bytes(119)), "has 119 bytes"),
        (answer(raw=None), "1 outputs have 0 raw contents"),
        (answer(name="z"), "has outputs ['z'], not ['y']"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_says_why(wrong: Any, reason: str) -> None:
    with pytest.raises(WrongAnswer) as caught:
        check_answer(wrong, MODEL, request_id="7", rows=3)
    assert reason in str(caught.value)


def test_an_answer_to_somebody_else_is_wrong() -> None:
    with pytest.raises(WrongAnswer, match="another request"):
        check_answer(answer(), MODEL, request_id="8", rows=3)
