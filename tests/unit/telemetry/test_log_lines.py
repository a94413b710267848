"""One line as each model comes up, goes, or fails; none for requests."""

import logging

import pytest

from preheat.telemetry.events import (
    BatchExecuted,
    Compiled,
    Event,
    FailureReason,
    RequestFailed,
    StateChanged,
    VersionLoaded,
)
from preheat.telemetry.log_lines import log_event


@pytest.mark.parametrize(
    ("event", "level", "line"),
    [
        (
            VersionLoaded("bert", 3, "eager", ["cuda:0", "cuda:1"], 2.04, 0.5),
            "INFO",
            "bert/3 READY: eager on cuda:0, cuda:1, loaded in 2.0 s, warmed in 0.5 s",
        ),
        (
            VersionLoaded("bert", 3, "eager", ["cpu"], 2.0, 90.0, instances=2, compiled=12, cached=5),
            "INFO",
            "bert/3 READY: eager on cpu, loaded in 2.0 s, warmed in 90.0 s, 12 compiled, 5 of them from the cache",
        ),
        (
            VersionLoaded("bert", 3, "eager", ["cpu"], 2.0, 5.5, compiled=1, paused_s=4.21),
            "INFO",
            "bert/3 READY: eager on cpu, loaded in 2.0 s, warmed in 5.5 s (4.2 s of that in pauses for others), "
            "1 compiled, 0 of them from the cache",
        ),
        (
            Compiled("bert", 3, 1, "graph", "ids [2, 40]: size mismatch", 1.23456, cached=False, ready=True),
            "WARNING",
            "bert/3 instance 1 is not hot: a request waited 1.235 s for graph: ids [2, 40]: size mismatch",
        ),
        (StateChanged("bert", 3, "FAILED", "no weights"), "ERROR", "bert/3 FAILED: no weights"),
        (StateChanged("bert", 0, "FAILED", "no config"), "ERROR", "bert FAILED: no config"),
        (StateChanged("bert", 3, "DRAINING", ""), "INFO", "bert/3 DRAINING"),
        (StateChanged("bert", 3, "UNLOADED", "unloaded"), "INFO", "bert/3 UNLOADED"),
        (StateChanged("bert", 3, "LOADING", ""), "DEBUG", "bert/3 LOADING"),
        (StateChanged("bert", 3, "READY", ""), "DEBUG", "bert/3 READY"),
    ],
)
def test_a_model_leaves_a_line(event: Event, level: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        log_event(event)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [(level, line)]


def test_what_is_compiled_before_a_model_is_ready_leaves_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        log_event(Compiled("bert", 3, 1, "graph", "batch 4", 1.0, cached=False, ready=False))
    assert caplog.records == []


@pytest.mark.parametrize(
    "event", [BatchExecuted("m", 1, 1, [0.0], 0.0, 0.0, 0.0, 0.0), RequestFailed("m", 1, FailureReason.OTHER, 0.5)]
)
def test_requests_leave_none(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        log_event(event)
    assert caplog.records == []
