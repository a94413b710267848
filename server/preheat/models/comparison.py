"""How far two answers to the same request agree. Pure."""

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from preheat.tensors import Array, DataType, Tensors

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one output agrees with another: 1 and 0 if it is the same.

    ``cosine`` is the least of its rows'; ``difference`` the largest of its values', as a share of the largest value.
    Rows of a single value have no direction: all of them are taken as one vector, whose length counts too. Of what is
    not floating-point, they are the share of elements that are equal, and of those that are not. ``problem``, after the
    output's name: why the two cannot be compared; empty if they can.
    """

    cosine: float
    difference: float
    problem: str = field(default="", compare=False)


# They cannot be compared.
NONE = Agreement(-1.0, float("inf"), "cannot be compared")


def compare(expected: Array, actual: Array, *, batched: bool) -> Agreement:
    """``actual`` against ``expected``, outputs of the same name. ``batched``: axis 0 is that of rows.

    What is not finite has to be the same in both.
    """
    problem = _difference_in_kind(expected, actual)
    if problem:
        return replace(NONE, problem=problem)
    if np.array_equal(expected, actual):
        return Agreement(1.0, 0.0)
    if not is_floating(expected):
        equal = float(np.mean(np.asarray(expected == actual, np.float64)))
        return Agreement(equal, 1.0 - equal)
    ours, theirs = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    odd = ~finite & (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
    if odd.any():
        places = f"{np.count_nonzero(odd)} of {odd.size} places"
        return replace(NONE, problem=f"has other NaN or infinite values than before, in {places}")
    ours, theirs = np.where(finite, ours, 0.0), np.where(finite, theirs, 0.0)
    if has_single_values(theirs, batched=batched):
        return Agreement(_likeness(ours.ravel(), theirs.ravel()), _difference(ours, theirs))
    rows = len(theirs) if batched and theirs.ndim else 1
    return Agreement(_least_cosine(ours.reshape(rows, -1), theirs.reshape(rows, -1)), _difference(ours, theirs))


def _difference_in_kind(expected: Array, actual: Array) -> str:
    if expected.shape != actual.shape:
        return f"has the shape {list(actual.shape)}, where it had {list(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"is {actual.dtype}, where it was {expected.dtype}"
    return ""


def is_floating(array: Array) -> bool:
    """Whether its values are floating-point numbers; numpy takes bfloat16 for a type of its own kind."""
    return array.dtype.kind == "f" or array.dtype == DataType.BF16.numpy


def has_single_values(array: Array, *, batched: bool) -> bool:
    """Whether each row has one value, as a score has."""
    return array.size == (len(array) if batched and array.ndim else 1)


def compare_all(expected: Tensors, actual: Tensors, names: tuple[str, ...], *, batched: bool) -> dict[str, Agreement]:
    """Each output of ``names`` (empty: of ``expected``); what is missing agrees in nothing."""
    return {
        name: compare(expected[name], actual[name], batched=batched)
        if {name} <= expected.keys() & actual.keys()
        else replace(NONE, problem="is missing")
        for name in names or expected
    }


def _least_cosine(ours: Floats, theirs: Floats) -> float:
    """Of two rows of zeros it is 1, and of one and another 0."""
    ours, our_lengths = _normalized(ours)
    theirs, their_lengths = _normalized(theirs)
    cosines = np.sum(ours * theirs, axis=1)
    cosines = np.where((our_lengths == 0) & (their_lengths == 0), 1.0, cosines)
    return float(np.clip(cosines, -1.0, 1.0).min())


def _likeness(ours: Floats, theirs: Floats) -> float:
    """What the cosine is of vectors of equal length, and less of others: from -1 to 1."""
    largest = max(np.abs(ours).max(), np.abs(theirs).max())
    if not largest:
        return 1.0
    ours, theirs = ours / largest, theirs / largest
    distance = np.sum((ours - theirs) ** 2)
    return float(1.0 - distance / (2.0 * max(np.sum(ours**2), np.sum(theirs**2))))


def _normalized(rows: Floats) -> tuple[Floats, Any]:
    """The rows at length 1, and their largest values; in two steps, for squares of large values are infinite."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, lengths, out=np.zeros_like(rows), where=lengths > 0), largest[:, 0]


def _difference(ours: Floats, theirs: Floats) -> float:
    largest = float(np.abs(theirs).max())
    if not largest:
        return 0.0 if not ours.any() else 1.0
    with np.errstate(over="ignore"):
        return float(np.abs(ours / largest - theirs / largest).max())
