"""How far two answers to the same request agree. Pure."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from preheat.tensors import Array, Tensors

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one output agrees with another: 1 and 0 if it is the same.

    ``cosine`` is the least of its rows'; ``difference`` the largest of its values', as a share of the largest value.
    Of what is not floating-point, they are the share of elements that are equal, and of those that are not.
    """

    cosine: float
    difference: float


# They cannot be compared.
NONE = Agreement(-1.0, float("inf"))


def compare(expected: Array, actual: Array, *, batched: bool) -> Agreement:
    """``actual`` against ``expected``, outputs of the same name. ``batched``: axis 0 is that of rows.

    What is not finite has to be the same in both.
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return NONE
    if np.array_equal(expected, actual):
        return Agreement(1.0, 0.0)
    if expected.dtype.kind in "iubO":
        equal = float(np.mean(np.asarray(expected == actual, np.float64)))
        return Agreement(equal, 1.0 - equal)
    ours, theirs = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(np.isfinite(ours), finite):
        return NONE
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return NONE
    ours, theirs = np.where(finite, ours, 0.0), np.where(finite, theirs, 0.0)
    rows = len(theirs) if batched and theirs.ndim else 1
    return Agreement(_least_cosine(ours.reshape(rows, -1), theirs.reshape(rows, -1)), _difference(ours, theirs))


def compare_all(expected: Tensors, actual: Tensors, names: tuple[str, ...], *, batched: bool) -> dict[str, Agreement]:
    """Each output of ``names`` (empty: of ``expected``); what is missing agrees in nothing."""
    return {
        name: compare(expected[name], actual[name], batched=batched)
        if {name} <= expected.keys() & actual.keys()
        else NONE
        for name in names or expected
    }


def _least_cosine(ours: Floats, theirs: Floats) -> float:
    """Of two rows of zeros it is 1, and of one and another 0."""
    ours, our_lengths = _normalized(ours)
    theirs, their_lengths = _normalized(theirs)
    cosines = np.sum(ours * theirs, axis=1)
    cosines = np.where((our_lengths == 0) & (their_lengths == 0), 1.0, cosines)
    return float(np.clip(cosines, -1.0, 1.0).min())


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
