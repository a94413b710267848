"""What a scraper reads: Triton's names, types and labels, and histograms that add up."""

import socket
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tests.unit.builders import PATIENCE_S, threads

from preheat.compilations import CompilationKind
from preheat.telemetry.events import (
    BatchExecuted,
    Compiled,
    FailureReason,
    RequestFailed,
    StateChanged,
    VersionLoaded,
)
from preheat.telemetry.metrics import MetricsServer, StatisticsCollector
from preheat.telemetry.statistics import LATENCY_BOUNDS_S, ROW_BOUNDS, Statistics

VERSION = {"model": "bert", "version": "3"}
# As Triton names them, in its units.
COUNTERS = {
    "nv_inference_request_success": 2,
    "nv_inference_count": 5,
    "nv_inference_exec_count": 1,
    "nv_inference_request_duration_us": 2.5e6,
    "nv_inference_queue_duration_us": 0.75e6,
    "nv_inference_compute_input_duration_us": 0.25e6,
    "nv_inference_compute_infer_duration_us": 0.5e6,
    "nv_inference_compute_output_duration_us": 1e6,
}
HISTOGRAMS = {
    "preheat_request_duration_seconds": (LATENCY_BOUNDS_S, 2, 2.5),
    "preheat_queue_duration_seconds": (LATENCY_BOUNDS_S, 2, 0.75),
    "preheat_compute_duration_seconds": (LATENCY_BOUNDS_S, 1, 0.25),
    "preheat_batch_rows": (ROW_BOUNDS, 1, 5.0),
}


def busy_statistics() -> Statistics:
    statistics = Statistics()
    for event in (
        StateChanged("bert", 3, "LOADING", ""),
        StateChanged("bert", 3, "READY", ""),
        Compiled("bert", 3, 1, "graph", "batch 4", 1.0, cached=True, ready=False),
        VersionLoaded("bert", 3, "eager", ["cpu"], 2.0, 0.5, instances=2),
        Compiled("bert", 3, 1, "eager", "x [1, 40]", 1.0, cached=False, ready=True),
        BatchExecuted("bert", 3, 5, [10.25, 10.0], 10.5, 10.625, 10.875, 11.375),
        RequestFailed("bert", 3, FailureReason.CANCELED, 0.5),
        # No version of it could be tried.
        StateChanged("broken", 0, "FAILED", "no config"),
    ):
        statistics.observe(event)
    return statistics


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    collector = StatisticsCollector(busy_statistics(), lambda: {("bert", 3): 4})
    made = MetricsServer(collector, host="127.0.0.1", port=0)
    yield made
    made.close()


@pytest.fixture
def text(server: MetricsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=PATIENCE_S) as response:
        body: bytes = response.read()
    return body.decode()


@pytest.fixture
def families(text: str) -> Mapping[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(families: Mapping[str, Metric], name: str) -> list[Sample]:
    return [sample for family in families.values() for sample in family.samples if sample.name == name]


@pytest.mark.parametrize(("name", "value"), COUNTERS.items())
def test_a_counter_has_tritons_name_type_labels_and_unit(
    families: Mapping[str, Metric], text: str, name: str, value: float
) -> None:
    assert f"# TYPE {name} counter\n" in text
    assert f"# HELP {name} " in text
    assert f"\n{name}{{" in text
    # The parser's own name for it.
    assert [(each.labels, each.value) for each in samples(families, f"{name}_total")] == [(VERSION, value)]


def test_no_name_of_tritons_has_an_ending_that_tritons_has_not(text: str) -> None:
    assert not [line for line in text.splitlines() if line.startswith(("nv_", "# TYPE nv_")) and "_total" in line]
    assert "_created" not in text


def test_failures_have_a_series_for_every_reason_from_the_start(families: Mapping[str, Metric], text: str) -> None:
    assert "# TYPE nv_inference_request_failure counter\n" in text
    found = samples(families, "nv_inference_request_failure_total")
    assert {each.labels["reason"]: each.value for each in found} == {
        "REJECTED": 0,
        "CANCELED": 1,
        "BACKEND": 0,
        "OTHER": 0,
    }
    assert all(each.labels.keys() == {"model", "version", "reason"} for each in found)


def counted(text: str, name: str) -> list[Sample]:
    """The samples of a counter, whatever its headers say."""
    return [each for family in text_string_to_metric_families(text) for each in family.samples if each.name == name]


@pytest.mark.parametrize("name", ["preheat_compilations_total", "preheat_cold_compiles_total"])
def test_a_counter_of_ours_has_its_name_in_its_headers(text: str, name: str) -> None:
    assert f"# TYPE {name} counter\n" in text
    assert f"# HELP {name} " in text


def test_compilations_have_a_series_for_every_kind_from_the_start(text: str) -> None:
    found = counted(text, "preheat_compilations_total")
    assert {each.labels["kind"]: each.value for each in found} == {
        kind.value: float(kind is CompilationKind.GRAPH) for kind in CompilationKind
    }
    assert all(each.labels.items() >= VERSION.items() for each in found)


def test_cold_compilations_have_a_series_for_every_instance_and_kind_and_count_what_came_after_ready(text: str) -> None:
    found = counted(text, "preheat_cold_compiles_total")
    assert {(each.labels["instance"], each.labels["kind"]): each.value for each in found} == {
        (instance, kind.value): float((instance, kind) == ("1", CompilationKind.EAGER))
        for instance in ("0", "1")
        for kind in CompilationKind
    }
    assert all(each.labels.keys() == {"model", "version", "instance", "kind"} for each in found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nv_inference_pending_request_count", 4),
        ("nv_model_load_duration_secs", 2.5),
        ("preheat_model_warmup_seconds", 0.5),
    ],
)
def test_a_gauge_has_the_labels_of_its_version(families: Mapping[str, Metric], name: str, value: float) -> None:
    assert families[name].type == "gauge"
    assert [(each.labels, each.value) for each in families[name].samples] == [(VERSION, value)]


def test_a_version_is_1_in_the_state_it_is_in_and_0_in_the_others(families: Mapping[str, Metric]) -> None:
    found = {each.labels["state"]: each.value for each in families["preheat_model_state"].samples}
    assert found == {"LOADING": 0, "READY": 1, "DRAINING": 0, "UNLOADED": 0, "FAILED": 0}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_buckets_of_a_histogram_are_cumulative_and_end_with_everything(
    families: Mapping[str, Metric], name: str
) -> None:
    bounds, count, total = HISTOGRAMS[name]
    assert families[name].type == "histogram"
    buckets = samples(families, f"{name}_bucket")
    assert [float(each.labels["le"]) for each in buckets] == [*bounds, float("inf")]
    values = [each.value for each in buckets]
    assert values == sorted(values)
    assert values[-1] == count
    assert [each.value for each in samples(families, f"{name}_count")] == [count]
    assert [each.value for each in samples(families, f"{name}_sum")] == [total]


def test_a_bucket_counts_what_its_bound_includes(families: Mapping[str, Metric]) -> None:
    buckets = {each.labels["le"]: each.value for each in samples(families, "preheat_request_duration_seconds_bucket")}
    assert (buckets["1.0"], buckets["2.5"]) == (0, 2)


def test_a_model_without_a_version_has_no_series(text: str) -> None:
    assert "broken" not in text


def test_a_server_without_models_still_answers() -> None:
    server = MetricsServer(StatisticsCollector(Statistics(), dict), host="127.0.0.1", port=0)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=PATIENCE_S) as response:
        assert response.status == 200
        assert b"# TYPE nv_inference_count counter" in response.read()
    server.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/metrics", 200),
        ("/metrics?name=x", 200),
        ("/", 404),
        ("/metrics/", 404),
        ("/metricsx", 404),
        ("/favicon.ico", 404),
    ],
)
def test_metrics_are_at_their_path_and_nowhere_else(server: MetricsServer, path: str, status: int) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == status
    assert status == 200 or b"/metrics" in body


def test_the_text_format_is_announced(server: MetricsServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=PATIENCE_S) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")


def test_a_port_that_is_taken_is_an_error_that_names_it(server: MetricsServer) -> None:
    collector = StatisticsCollector(Statistics(), dict)
    with pytest.raises(
        OSError, match=rf"^cannot listen on 127\.0\.0\.1:{server.port} for metrics: Address already in use; choose"
    ):
        MetricsServer(collector, host="127.0.0.1", port=server.port)


def test_closing_frees_the_port_and_ends_the_threads() -> None:
    before = threads()
    server = MetricsServer(StatisticsCollector(Statistics(), dict), host="127.0.0.1", port=0)
    server.close()
    assert threads() <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
