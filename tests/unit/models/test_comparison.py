"""How far two outputs agree, whatever is in them."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from preheat.models.comparison import NONE, Agreement, compare, compare_all

SAME = Agreement(1.0, 0.0)
ANY = arrays.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
FINITE = arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32))


def same(agreement: Agreement) -> bool:
    return agreement.cosine == pytest.approx(1.0) and agreement.difference == 0.0


@given(ANY, st.booleans())
def test_whatever_is_the_same_agrees(array: Any, batched: bool) -> None:
    assert same(compare(array, array.copy(), batched=batched))


@given(ANY, ANY, st.booleans())
def test_any_two_can_be_compared(one: Any, other: Any, batched: bool) -> None:
    found = compare(one, other, batched=batched)
    assert -1.0 <= found.cosine <= 1.0
    assert found.difference >= 0.0
    assert (found == NONE) or one.shape == other.shape


@given(FINITE, FINITE)
def test_cosine_is_symmetric_and_knows_no_scale(one: Any, other: Any) -> None:
    there, back = compare(one, other, batched=True), compare(other, one, batched=True)
    assert there.cosine == pytest.approx(back.cosine, abs=1e-9)
    assert compare(one, other * 4, batched=True).cosine == pytest.approx(there.cosine, abs=1e-9)


def test_the_worst_row_counts() -> None:
    expected = np.array([[1, 0], [0, 1]], np.float32)
    actual = np.array([[1, 0], [1, 0]], np.float32)
    assert compare(expected, actual, batched=True) == Agreement(0.0, 1.0)
    assert compare(expected, actual, batched=False).cosine == pytest.approx(0.5)


def test_what_is_zero_agrees_with_zero_only() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    assert compare(zero, zero, batched=True) == SAME
    assert compare(zero, one, batched=True) == Agreement(0.0, 1.0)
    assert compare(one, zero, batched=True).cosine == 0.0


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_agrees_with_itself_only(odd: float) -> None:
    array = np.array([[1, odd]], np.float32)
    assert same(compare(array, array, batched=True))
    assert compare(array, np.array([[1, 2]], np.float32), batched=True) == NONE
    assert compare(np.array([[1, 2]], np.float32), array, batched=True) == NONE
    assert compare(array, np.array([[1, 7 if odd == np.inf else np.inf]], np.float32), batched=True) == NONE


def test_labels_agree_as_far_as_they_are_equal() -> None:
    expected = np.array([1, 2, 3, 4])
    assert compare(expected, np.array([1, 2, 3, 5]), batched=True) == Agreement(0.75, 0.25)
    texts = np.array([b"cat", b"dog"], np.object_)
    assert compare(texts, np.array([b"cat", b"cat"], np.object_), batched=True) == Agreement(0.5, 0.5)


def test_large_and_short_numbers_are_no_trouble() -> None:
    large = np.full((1, 4), 1e300)
    assert same(compare(large, large.copy(), batched=True))
    short = np.array([[1, 2, 3]], ml_dtypes.bfloat16)
    assert same(compare(short, short.copy(), batched=True))
    assert compare(short, (short * 2).astype(ml_dtypes.bfloat16), batched=True).difference == pytest.approx(1.0)


SINGLE = arrays.arrays(np.float32, (3, 1), elements=st.floats(-(2.0**99), 2.0**99, width=32))


@given(SINGLE, SINGLE)
def test_single_values_are_compared_with_their_size(one: Any, other: Any) -> None:
    there, back = compare(one, other, batched=True), compare(other, one, batched=True)
    assert -1.0 <= there.cosine <= 1.0
    assert there.cosine == pytest.approx(back.cosine, abs=1e-9)


def test_a_score_that_is_another_does_not_agree() -> None:
    score = np.array([[0.01]], np.float32)
    assert compare(score, np.array([[0.99]], np.float32), batched=True).cosine < 0.6
    assert compare(score, -score, batched=True).cosine == pytest.approx(-1.0)
    assert compare(np.array([0.9]), np.array([0.91]), batched=False).cosine > 0.99
    # Small ones beside a large one weigh little, as in a cosine.
    assert compare(np.array([[1e-5], [1.0]]), np.array([[2e-5], [1.0]]), batched=True).cosine > 0.99


def test_what_cannot_be_compared_says_why() -> None:
    array = np.ones((1, 2), np.float32)
    assert compare(array, array[:, :1], batched=True).problem == "has the shape [1, 1], where it had [1, 2]"
    assert compare(array, array.astype(np.float16), batched=True).problem == "is float16, where it was float32"
    assert compare(array, array * np.nan, batched=True).problem == (
        "has other NaN or infinite values than before, in 2 of 2 places"
    )
    assert compare_all({"a": array}, {}, (), batched=True)["a"].problem == "is missing"


@pytest.mark.parametrize("kind", [np.str_, np.bytes_, np.complex128])
def test_types_that_no_model_gives_can_be_compared_too(kind: type) -> None:
    assert compare(np.array(["1", "2"]).astype(kind), np.array(["1", "3"]).astype(kind), batched=True).cosine == 0.5


def test_outputs_go_by_name_and_one_that_is_missing_agrees_in_nothing() -> None:
    one = np.ones(2, np.float32)
    assert compare_all({"a": one, "b": one}, {"a": one}, (), batched=False) == {"a": SAME, "b": NONE}
    assert compare_all({"a": one, "b": one}, {"a": one}, ("a",), batched=False) == {"a": SAME}
