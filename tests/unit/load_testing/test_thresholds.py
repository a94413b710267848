"""What breaks a threshold, and by how much."""

import pytest
from loadtests.thresholds import Allowance, Outcome, Thresholds, broken

NO_FAILURE = Allowance(0, is_share=False)
GOOD = Outcome(requests=1000, failures=0, duration_s=10.0, p99_ms=25)


def test_a_test_that_keeps_to_all_has_nothing_to_say() -> None:
    # What is just allowed is allowed.
    assert list(broken(Thresholds(p99_ms=25, max_failures=NO_FAILURE, min_rps=100), GOOD)) == []


def test_each_threshold_that_is_broken_has_its_line() -> None:
    bad = Outcome(requests=1000, failures=20, duration_s=10.0, p99_ms=40)
    assert list(broken(Thresholds(p99_ms=25, max_failures=NO_FAILURE, min_rps=100), bad)) == [
        "p99 is 40 ms, 15 ms above the 25 ms of --p99-ms",
        "20 of 1000 requests failed, 20 more than --max-failures 0 allows",
        "98.0 requests were answered each second, 2.0 fewer than the 100 of --min-rps",
    ]


@pytest.mark.parametrize(
    ("allowance", "failures", "said"),
    [
        (Allowance(5, is_share=False), 5, []),
        (Allowance(5, is_share=False), 6, ["6 of 1000 requests failed, 1 more than --max-failures 5 allows"]),
        (Allowance(0.5, is_share=True), 5, []),
        (Allowance(0.5, is_share=True), 7, ["7 of 1000 requests failed, 2 more than --max-failures 0.5% allows"]),
    ],
)
def test_failures_are_allowed_by_count_or_by_share(allowance: Allowance, failures: int, said: list[str]) -> None:
    outcome = Outcome(requests=1000, failures=failures, duration_s=10.0, p99_ms=25)
    assert list(broken(Thresholds(None, allowance, None), outcome)) == said


def test_a_test_without_a_request_is_no_success() -> None:
    nothing = Outcome(requests=0, failures=0, duration_s=0.0, p99_ms=None)
    assert list(broken(Thresholds(None, NO_FAILURE, None), nothing)) == ["no request was made"]


def test_a_single_request_has_no_rate_to_boast_of() -> None:
    single = Outcome(requests=1, failures=0, duration_s=0.0, p99_ms=3)
    assert len(list(broken(Thresholds(None, NO_FAILURE, 1), single))) == 1
