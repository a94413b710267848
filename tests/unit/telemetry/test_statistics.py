"""The one aggregate: what goes in adds up, and a snapshot is nobody else's."""

import copy
import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import PATIENCE_S, Events

from preheat.compilations import CompilationKind
from preheat.telemetry.events import (
    BatchExecuted,
    Compiled,
    Event,
    FailureReason,
    RequestFailed,
    StateChanged,
    VersionLoaded,
    broadcast,
)
from preheat.telemetry.statistics import LATENCY_BOUNDS_S, ROW_BOUNDS, Histogram, Statistics, VersionStatistics

seconds = st.floats(0, 20)


@st.composite
def batches(draw: st.DrawFn) -> BatchExecuted:
    arrived_s = draw(st.lists(seconds, min_size=1, max_size=4))
    times_s = list(accumulate([max(arrived_s), *(draw(seconds) for _ in range(4))]))[1:]
    return BatchExecuted("m", 1, draw(st.integers(1, 600)), arrived_s, *times_s)


def executed(rows: int = 3, model: str = "m") -> BatchExecuted:
    """Two requests that waited 0.25 and 0.5 s; 0.125, 0.25 and 0.5 s of computing."""
    return BatchExecuted(model, 1, rows, [10.25, 10.0], 10.5, 10.625, 10.875, 11.375)


def test_a_server_is_idle_since_the_last_batch_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = Statistics()
    assert statistics.idle_s() == math.inf
    statistics.observe(executed())
    monkeypatch.setattr("preheat.telemetry.statistics.time.monotonic", lambda: executed().ended_s + 3.0)
    assert statistics.idle_s() == pytest.approx(3.0)


def counted(*events: Event) -> VersionStatistics:
    statistics = Statistics()
    for event in events:
        statistics.observe(event)
    return statistics.snapshot()["m", 1]


def test_a_batch_counts_its_requests_its_rows_and_itself() -> None:
    version = counted(executed(3), executed(5))
    assert (version.requests, version.inferences, version.executions) == (4, 8, 2)
    assert (version.queue_s, version.request_s) == (1.5, 5.0)


def test_the_times_of_a_batch_count_once_for_each_of_its_requests() -> None:
    version = counted(executed())
    assert (version.compute_input_s, version.compute_infer_s, version.compute_output_s) == (0.25, 0.5, 1.0)


@given(st.lists(batches(), min_size=1, max_size=5))
def test_histograms_count_every_request_and_every_batch_and_sum_to_the_totals(events: list[BatchExecuted]) -> None:
    version = counted(*events)
    assert version.requests == sum(len(event.arrived_s) for event in events)
    assert sum(version.request_histogram.counts) == sum(version.queue_histogram.counts) == version.requests
    assert sum(version.infer_histogram.counts) == sum(version.rows_histogram.counts) == version.executions
    assert version.request_histogram.total == pytest.approx(version.request_s)
    assert version.queue_histogram.total == pytest.approx(version.queue_s)
    assert version.rows_histogram.total == version.inferences


@given(st.lists(st.floats(0, 1000), max_size=20), st.sampled_from([LATENCY_BOUNDS_S, ROW_BOUNDS]))
def test_a_value_is_counted_in_the_first_bucket_whose_bound_it_does_not_exceed(
    values: list[float], bounds: tuple[float, ...]
) -> None:
    histogram = Histogram(bounds)
    histogram.observe(np.array([*values, *bounds]))
    for position, bound in enumerate(bounds):
        assert sum(histogram.counts[: position + 1]) == sum(value <= bound for value in [*values, *bounds])
    assert sum(histogram.counts) == len(values) + len(bounds)


@pytest.mark.parametrize("reason", FailureReason)
def test_a_failure_is_counted_under_its_reason_and_is_no_request_that_succeeded(reason: FailureReason) -> None:
    version = counted(RequestFailed("m", 1, reason, 0.5), RequestFailed("m", 1, reason, 0.5))
    assert version.failures == {each: 2 * (each is reason) for each in FailureReason}
    assert version.requests == 0


def test_the_state_and_the_times_of_loading_are_those_last_said() -> None:
    version = counted(
        StateChanged("m", 1, "LOADING", ""),
        VersionLoaded("m", 1, "eager", ["cpu"], 2.0, 0.5),
        StateChanged("m", 1, "READY", ""),
    )
    assert (version.state, version.load_s, version.warmup_s) == ("READY", 2.0, 0.5)


def compiled(kind: CompilationKind = CompilationKind.GRAPH, *, instance: int = 0, ready: bool = False) -> Compiled:
    return Compiled("m", 1, instance, kind.value, "batch 4", 1.0, cached=False, ready=ready)


READY = VersionLoaded("m", 1, "torch_compile", ["cpu"], 2.0, 0.5, instances=2)


def test_all_that_can_be_compiled_is_counted_from_0_once_a_version_is_ready() -> None:
    version = counted(READY)
    assert version.compilations == {kind.value: 0 for kind in CompilationKind}
    assert version.cold_compilations == {(instance, kind.value): 0 for instance in (0, 1) for kind in CompilationKind}


def test_what_is_compiled_before_a_version_is_ready_is_not_cold_and_stays_counted() -> None:
    version = counted(compiled(), compiled(instance=1), compiled(CompilationKind.AUTOTUNING), READY)
    assert version.compilations == {kind.value: 0 for kind in CompilationKind} | {"graph": 2, "autotuning": 1}
    assert set(version.cold_compilations.values()) == {0}


@pytest.mark.parametrize("kind", CompilationKind)
def test_what_is_compiled_after_is_counted_by_instance_and_kind_and_by_nothing_else(kind: CompilationKind) -> None:
    version = counted(compiled(), READY, *[compiled(kind, instance=1, ready=True)] * 3)
    moved = {key: count for key, count in version.cold_compilations.items() if count}
    assert moved == {(1, kind.value): 3}
    assert sum(version.compilations.values()) == 1


def test_a_version_that_is_loaded_again_goes_on_counting() -> None:
    version = counted(READY, compiled(ready=True), compiled(), READY, compiled(ready=True))
    assert (version.compilations["graph"], version.cold_compilations[0, "graph"]) == (1, 2)


def test_the_last_inference_is_told_in_milliseconds_of_this_age() -> None:
    assert counted(RequestFailed("m", 1, FailureReason.OTHER, 0.5)).last_inference_ms == 0
    before_ms, now_s = time.time_ns() // 1_000_000, time.monotonic()
    last_ms = counted(executed()._replace(ended_s=now_s)).last_inference_ms
    # The two clocks are read one after the other, and either may be rounded.
    assert before_ms - 1 <= last_ms <= time.time_ns() // 1_000_000 + 1


def test_versions_and_models_are_counted_apart_and_listed_in_order() -> None:
    statistics = Statistics()
    for model, version in (("b", 1), ("a", 10), ("a", 2)):
        statistics.observe(RequestFailed(model, version, FailureReason.OTHER, 0.5))
    assert list(statistics.snapshot()) == [("a", 2), ("a", 10), ("b", 1)]


def test_batches_that_are_counted_at_once_are_those_of_their_versions_and_sizes() -> None:
    statistics = Statistics()
    for number in range(1000):
        statistics.observe(executed(1 + number % 3, "ab"[number % 2]))
    counts = {model: statistics.of(model, 1) for model in "ab"}
    assert [version.executions for version in counts.values()] == [500, 500]
    for offset, version in enumerate(counts.values()):
        rows = [1 + number % 3 for number in range(offset, 1000, 2)]
        assert version.inferences == sum(rows)
        assert {size: each.executions for size, each in version.batch_sizes.items()} == {
            size: rows.count(size) for size in (1, 2, 3)
        }
        assert version.batch_sizes[2].compute_infer_s == 0.25 * rows.count(2)


def test_a_snapshot_changes_no_more() -> None:
    statistics = Statistics()
    statistics.observe(executed())
    before = statistics.snapshot()
    remembered = copy.deepcopy(before)
    statistics.observe(executed())
    statistics.observe(RequestFailed("m", 1, FailureReason.OTHER, 0.5))
    assert before == remembered
    assert statistics.snapshot() != before


def test_events_of_many_threads_are_all_counted() -> None:
    statistics = Statistics()

    def observe_many() -> None:
        for _ in range(500):
            statistics.observe(executed())

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(observe_many) for _ in range(8)]:
            each.result(PATIENCE_S)
    assert statistics.snapshot()["m", 1].requests == 8000


def test_an_event_is_passed_to_every_observer_in_order() -> None:
    order: list[int] = []
    first, last = Events(), Events()
    event = RequestFailed("m", 1, FailureReason.OTHER, 0.5)
    broadcast(first, rare=(lambda _: order.append(len(last.seen)), last))(event)
    assert (first.seen, last.seen, order) == ([event], [event], [0])


def test_a_batch_is_passed_only_to_who_counts() -> None:
    counter, other = Events(), Events()
    broadcast(counter, rare=(other,))(executed())
    assert (counter.seen, other.seen) == ([executed()], [])
