"""What was timed, as a row, and what a server has loaded."""

from benchmarks.timings import loads, summary


def test_a_row_has_the_middle_and_the_worst() -> None:
    row = summary("asked", [number / 1000 for number in range(1, 201)])
    assert row == {"what": "asked", "times": 200, "median ms": 100.5, "p99": 198.0, "slowest": 200.0}


def test_of_what_was_timed_once_all_are_the_same() -> None:
    assert summary("started", [1.5]) == {
        "what": "started", "times": 1, "median ms": 1500.0, "p99": 1500.0, "slowest": 1500.0,
    }  # fmt: skip


def test_what_was_loaded_is_in_the_log_in_order() -> None:
    log = """\
2026-01-01T00:00:00 INFO    preheat.models.swapping: model_0007/2 begins to load
2026-01-01T00:00:00 INFO    preheat.models: model_0007/2 READY: double on cpu, loaded in 0.0 s, warmed in 0.0 s
2026-01-01T00:00:01 INFO    preheat.models.swapping: newcomer/1 begins to load
"""
    assert loads(log) == ["model_0007", "newcomer"]
