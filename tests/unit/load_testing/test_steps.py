"""A load in steps."""

import pytest
from loadtests.options import LoadTestError
from loadtests.steps import Steps, Totals, read_steps


def test_a_step_lasts_its_time_and_after_the_last_there_is_none() -> None:
    steps = read_steps("1,4,16", "2.5")
    assert steps == Steps((1, 4, 16), 2.5)
    assert [steps.at(elapsed_s) for elapsed_s in (0, 2.4, 2.5, 5, 7.4, 7.5, 99)] == [0, 0, 1, 2, 2, None, None]


@pytest.mark.parametrize(
    ("users", "seconds", "flag"),
    [("", "1", "--ramp"), ("1,0", "1", "--ramp"), ("1,x", "1", "--ramp"), ("1", "0", "--step-seconds")],
)
def test_steps_that_cannot_be_are_refused(users: str, seconds: str, flag: str) -> None:
    with pytest.raises(LoadTestError, match=flag):
        read_steps(users, seconds)


def test_a_step_counts_only_what_came_since_the_one_before() -> None:
    before = Totals(100, 3, {5: 90, 40: 10})
    step = Totals(200, 4, {5: 90, 8: 99, 40: 11}).since(before)
    assert (step.requests, step.failures) == (100, 1)
    assert (step.percentile(0.5), step.percentile(0.99), step.percentile(1)) == (8, 8, 40)


def test_a_step_without_requests_has_no_percentile() -> None:
    assert Totals(5, 0, {5: 5}).since(Totals(5, 0, {5: 5})).percentile(0.5) is None
    assert Totals().since(Totals()).percentile(0.99) is None
