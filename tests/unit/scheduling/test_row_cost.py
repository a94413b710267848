"""Which batches pay: what single times suggest is measured again before it counts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preheat.scheduling.pending import BatchKey
from preheat.scheduling.row_cost import (
    Times,
    count_worthwhile,
    find_worthwhile,
    least_times,
    tell_worthwhile,
    time_batches,
    worthwhile_rows,
)
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


def found(first: Times, later: Times | None = None, *, pads: bool = False) -> tuple[Mapping[BatchKey, int], Timed]:
    again = Timed(first if later is None else later)
    times = time_batches([batch(rows) for rows in first], list(first.values()), again, pads=pads)
    return find_worthwhile(times), again


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
    times = time_batches(batches, [1.5, 5.0, 1.0, 1.0, 100.0], Timed({1: 1.0, 2: 5.0}), pads=False)
    assert find_worthwhile(times) == {LONG: 1}


def test_one_in_between_that_was_dear_once_is_measured_again() -> None:
    _, again = found({4: 2.0, 2: 8.0, 1: 1.0}, {4: 2.0, 2: 1.5, 1: 1.0})
    assert again.ran == [4, 2, 1]


def test_what_batches_are_padded_to_is_measured_twice_at_least() -> None:
    assert found({4: 2.0, 2: 1.5, 1: 1.0}, pads=True)[1].ran == [4, 2, 1]
    assert found({4: 0.0019, 2: 0.0015, 1: 0.0010}, pads=True)[1].ran == []
    assert found({1: 1.0}, pads=True)[1].ran == []


def test_of_several_instances_the_least_counts() -> None:
    reports: list[Mapping[BatchKey, Times]] = [{SHORT: {1: 3.0, 2: 4.0}, LONG: {1: 1.0}}, {SHORT: {1: 2.0, 2: 5.0}}]
    assert least_times(reports) == {SHORT: {1: 2.0, 2: 4.0}}


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        # Padded to 32, 24 rows take as long as four batches of 8.
        ([8, 8, 8], 1),
        ([8, 8, 8, 8], 4),
        ([8] + [1] * 19, 1),
        ([8] + [1] * 20, 21),
        ([1] * 3, 3),
        ([1] * 8, 8),
        ([1] * 9, 8),
        # One request is never cut, nor is what is beyond all sizes.
        ([24], 1),
        ([24, 1], 2),
        ([40, 1], 2),
    ],
)
def test_a_batch_is_padded_to_a_size_only_if_its_rows_cost_no_more_for_that(rows: Sequence[int], count: int) -> None:
    assert count_worthwhile(rows, {1: 0.010, 8: 0.030, 32: 0.120}) == count


def test_what_is_padded_to_a_size_that_is_done_in_no_time_is_not_cut() -> None:
    assert count_worthwhile([1] * 9, {1: 0.0001, 8: 0.0002, 32: 0.0019}) == 9


@given(
    st.lists(st.integers(1, 40), min_size=1),
    st.dictionaries(st.integers(1, 64), st.floats(0.002, 10), min_size=1),
)
def test_no_more_requests_would_cost_less_for_each_row(rows: Sequence[int], seconds: Times) -> None:
    def cost(count: int) -> float:
        total = sum(rows[:count])
        fitting = [size for size in sorted(seconds) if size >= total]
        return seconds[fitting[0]] / total if fitting else 0.0

    count = count_worthwhile(rows, seconds)
    assert 1 <= count <= len(rows)
    if cost(len(rows)):
        assert all(cost(more) > cost(count) * 0.99 for more in range(count + 1, len(rows) + 1))


def test_it_is_told_in_words() -> None:
    key: BatchKey = (("ids", (128,)), ("mask", (128,)))
    assert tell_worthwhile({key: {8: 0.030, 32: 0.150}}, pads=True) == [
        "no more than 8 rows are joined (ids [128], mask [128]): in larger batches each takes longer"
    ]
    times = {key: {1: 0.010, 8: 0.030, 32: 0.120}}
    assert tell_worthwhile(times, pads=False) == []
    assert tell_worthwhile(times, pads=True) == [
        "2 rows are not padded to 8 (ids [128], mask [128]), but run in smaller batches: that takes less time",
        "9 to 27 rows are not padded to 32 (ids [128], mask [128]), but run in smaller batches: that takes less time",
    ]
