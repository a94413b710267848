"""Which batches pay: what single times suggest is measured again before it counts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preheat.scheduling.pending import BatchKey
from preheat.scheduling.row_cost import find_worthwhile, tell_worthwhile, worthwhile_rows
from preheat.scheduling.warmup import WarmupBatch

SHORT: BatchKey = (("x", (32,)),)
LONG: BatchKey = (("x", (128,)),)


def batch(rows: int, key: BatchKey | None = SHORT) -> WarmupBatch:
    return WarmupBatch(f"batch {rows}", [{"x": np.zeros((1, 32))}] * rows, key)


class Timed:
    """Runs batches, in the seconds that it is given by rows, and notes which."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._seconds = seconds
        self.ran: list[int] = []

    def __call__(self, batch: WarmupBatch) -> float:
        self.ran.append(len(batch.parts))
        return self._seconds[len(batch.parts)]


def found(first: Mapping[int, float], later: Mapping[int, float] | None = None) -> tuple[Mapping[BatchKey, int], Timed]:
    again = Timed(first if later is None else later)
    return find_worthwhile([batch(rows) for rows in first], list(first.values()), again), again


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.5, 4: 2.0}, 4),
        ({1: 1.0, 2: 2.0, 4: 4.0}, 4),
        # A tenth more for each row is not worth a smaller batch, a quarter is.
        ({1: 1.0, 2: 2.2}, 2),
        ({1: 1.0, 2: 2.5}, 1),
        ({1: 1.0, 2: 1.0, 4: 3.0, 8: 8.0}, 2),
        # One in between that is slow does not speak against a larger one that is fast.
        ({1: 1.0, 2: 4.0, 4: 2.0}, 4),
    ],
)
def test_the_largest_batch_pays_whose_rows_cost_no_more_than_the_cheapest(
    seconds: Mapping[int, float], rows: int
) -> None:
    assert worthwhile_rows(seconds) == rows


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10), min_size=1))
def test_no_larger_batch_than_what_pays_costs_less_for_each_row(seconds: Mapping[int, float]) -> None:
    rows = worthwhile_rows(seconds)
    assert all(seconds[larger] / larger > seconds[rows] / rows * 0.99 for larger in seconds if larger > rows)


def test_batches_that_get_cheaper_by_the_row_are_not_measured_again() -> None:
    limits, again = found({8: 2.0, 4: 1.5, 1: 1.0})
    assert limits == {}
    assert again.ran == []


def test_a_batch_that_is_dearer_each_time_is_not_worth_it() -> None:
    limits, again = found({4: 8.0, 2: 2.0, 1: 1.0})
    assert limits == {SHORT: 2}
    assert again.ran == [4, 2, 1] * 3


def test_a_batch_that_was_dear_once_is_as_good_as_when_it_was_not() -> None:
    limits, again = found({4: 8.0, 2: 2.0, 1: 1.0}, {4: 2.0, 2: 2.0, 1: 1.0})
    assert limits == {}
    assert again.ran == [4, 2, 1]


def test_batches_that_are_done_in_no_time_are_not_weighed() -> None:
    limits, again = found({4: 0.0019, 1: 0.0001})
    assert limits == {}
    assert again.ran == []


def test_a_batch_that_took_long_once_and_is_else_done_in_no_time_is_not_weighed() -> None:
    limits, again = found({4: 8.0, 1: 1.0}, {4: 0.0019, 1: 0.0001})
    assert limits == {}
    assert again.ran == [4, 1]


def test_shapes_are_weighed_apart_and_samples_not_at_all() -> None:
    batches: Sequence[WarmupBatch] = [batch(2), batch(2, LONG), batch(1), batch(1, LONG), batch(4, None)]
    limits = find_worthwhile(batches, [1.5, 5.0, 1.0, 1.0, 100.0], Timed({1: 1.0, 2: 5.0}))
    assert limits == {LONG: 1}


def test_it_is_told_in_words() -> None:
    assert tell_worthwhile({(("ids", (128,)), ("mask", (128,))): 8}) == [
        "no more than 8 rows are joined (ids [128], mask [128]): in larger batches each takes longer"
    ]
