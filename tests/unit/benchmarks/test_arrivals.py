"""When requests of an open loop are due."""

from itertools import islice

import pytest
from benchmarks.arrivals import arrivals


def test_even_arrivals_of_a_stream_are_as_far_apart_as_its_rate_says() -> None:
    assert list(islice(arrivals([4.0], even=True, seed=1), 4)) == [(0.0, 0, 0), (0.25, 0, 1), (0.5, 0, 2), (0.75, 0, 3)]


def test_streams_are_merged_in_order_each_with_its_own_rate() -> None:
    found = list(islice(arrivals([10.0, 4.0], even=True, seed=1), 140))
    assert [each.due_s for each in found] == sorted(each.due_s for each in found)
    assert [sum(each.stream == stream for each in found) for stream in (0, 1)] == [100, 40]
    assert [each.number for each in found if each.stream == 1] == list(range(40))


def test_random_arrivals_have_the_rate_on_average_and_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(islice(arrivals([50.0], even=False, seed=seed), 5000)) for seed in (1, 1, 2))
    assert first == again != other
    assert first[-1].due_s == pytest.approx(100, rel=0.1)


def test_a_stream_without_a_rate_has_no_arrivals() -> None:
    assert all(each.stream == 1 for each in islice(arrivals([0.0, 5.0], even=True, seed=1), 20))
    assert list(arrivals([0.0], even=True, seed=1)) == []
