"""What operators and load balancers see: metrics, health and readiness, from before the first model is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.scrape import Scrape, scrape, scrape_until
from tests.e2e.server_process import METRICS_PORT, ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows
from tests.e2e.wire import NOT_SERVING, SERVICE, SERVING, Wire, status_of

pytestmark = pytest.mark.protocol

COUNTERS = (
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
)
HISTOGRAMS = (
    "preheat_request_duration_seconds",
    "preheat_queue_duration_seconds",
    "preheat_compute_duration_seconds",
    "preheat_batch_rows",
)
GAUGES = (
    "nv_inference_pending_request_count",
    "nv_model_load_duration_secs",
    "preheat_model_warmup_seconds",
    "preheat_model_state",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two models, one with two versions, after a few requests to each."""
    repository = tmp_path_factory.mktemp("observed")
    write_model(repository, "first", echo_config())
    write_model(
        repository, "second", echo_config(extra="version_policy { all { } }", parameters={"seconds": 0.001}),
        versions=[1, 2],
    )  # fmt: skip
    with ServerProcess(repository) as server:
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            for model, version, sizes in (("first", "1", [1, 3, 8]), ("second", "1", [2]), ("second", "2", [4, 4])):
                for size in sizes:
                    client.infer(model, infer_inputs({"INPUT0": unique_rows(size, start=0)}), model_version=version)
        yield server


@pytest.fixture
def found(server: ServerProcess) -> Scrape:
    """The metrics after those requests."""
    return scrape_until(server, lambda found: found.total("nv_inference_request_success") == 6)


def test_every_family_has_its_type_and_every_version_its_series(found: Scrape) -> None:
    for names, kind in ((COUNTERS, "counter"), (HISTOGRAMS, "histogram"), (GAUGES, "gauge")):
        for name in names:
            assert found.types[name] == kind
            samples = found.select(f"{name}_count" if kind == "histogram" else name)
            versions = {(sample.labels["model"], sample.labels["version"]) for sample in samples}
            assert versions == {("first", "1"), ("second", "1"), ("second", "2")}, name


@pytest.mark.parametrize(
    ("model", "version", "requests", "rows"), [("first", "1", 3, 12), ("second", "1", 1, 2), ("second", "2", 2, 8)]
)
def test_counters_and_histograms_agree_for_each_version(
    found: Scrape, model: str, version: str, requests: int, rows: int
) -> None:
    labels = {"model": model, "version": version}
    assert found.total("nv_inference_request_success", **labels) == requests
    assert found.total("nv_inference_count", **labels) == rows
    # They came one after the other.
    assert found.total("nv_inference_exec_count", **labels) == requests
    assert found.total("preheat_batch_rows_sum", **labels) == rows
    for name in HISTOGRAMS:
        assert found.total(f"{name}_count", **labels) == requests
        assert found.total(f"{name}_bucket", **labels, le="+Inf") == requests
    for stage in ("request", "queue"):
        seconds = found.total(f"preheat_{stage}_duration_seconds_sum", **labels)
        assert found.total(f"nv_inference_{stage}_duration_us", **labels) == pytest.approx(seconds * 1e6)


def test_buckets_count_everything_below_their_bound(found: Scrape) -> None:
    samples = found.select("preheat_batch_rows_bucket", model="first")
    counts = {sample.labels["le"]: sample.value for sample in samples}
    assert (counts["1.0"], counts["2.0"], counts["4.0"], counts["8.0"], counts["+Inf"]) == (1, 1, 2, 3, 3)


def test_time_in_the_model_is_part_of_the_time_of_the_request(found: Scrape) -> None:
    labels = {"model": "second", "version": "1"}
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    parts = sum(found.total(f"nv_inference_{stage}_duration_us", **labels) for stage in stages)
    assert found.total("nv_inference_compute_infer_duration_us", **labels) >= 1000
    assert parts <= found.total("nv_inference_request_duration_us", **labels) + 1


def test_each_failure_reason_has_a_series_before_anything_has_failed(found: Scrape) -> None:
    reasons = {sample.labels["reason"] for sample in found.select("nv_inference_request_failure", model="first")}
    assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert found.total("nv_inference_request_failure") == 0


def test_ready_versions_tell_their_state_and_what_bringing_them_up_took(found: Scrape) -> None:
    for model, version in (("first", "1"), ("second", "1"), ("second", "2")):
        assert found.state(model, version) == ["READY"]
        warm_up_s = found.total("preheat_model_warmup_seconds", model=model, version=version)
        assert 0 < warm_up_s < found.total("nv_model_load_duration_secs", model=model, version=version)
    # Four warm-up batches of a millisecond each.
    assert found.total("preheat_model_warmup_seconds", model="second", version="1") >= 0.004


def test_only_the_metrics_are_at_the_port_of_the_metrics(server: ServerProcess) -> None:
    assert scrape(server).samples
    assert server.metrics_url.endswith("/metrics")


@pytest.fixture
def gatekeeper() -> Iterator[Gatekeeper]:
    with Gatekeeper(shut=True) as gatekeeper:
        yield gatekeeper


def test_a_server_that_loads_answers_but_is_not_ready_until_every_model_is_hot(
    tmp_path: Path, gatekeeper: Gatekeeper
) -> None:
    write_model(tmp_path, "gated", gatekeeper.config())
    write_model(tmp_path, "echo", echo_config())
    with (
        ServerProcess(tmp_path, until=METRICS_PORT) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
        Wire(server.grpc_address) as wire,
    ):
        load = gatekeeper.next()
        assert load.what == "load"
        _assert_loading(server, client, wire)
        gatekeeper.let_go(load)
        warm_up = gatekeeper.next()
        assert (warm_up.what, warm_up.rows) == ("execute", 8)
        _assert_loading(server, client, wire)
        gatekeeper.open()
        server.wait_for_log(" ready: 2 model versions are hot")
        assert client.is_server_ready()
        assert client.is_model_ready("gated")
        assert wire.health() == wire.health(SERVICE.full_name) == SERVING
        assert scrape(server).state("gated") == ["READY"]
        rows = unique_rows(2, start=3)
        assert (client.infer("gated", infer_inputs({"INPUT0": rows})).as_numpy("OUTPUT0") == rows).all()


def _assert_loading(server: ServerProcess, client: Any, wire: Wire) -> None:
    """The gated model loads, and the other serves meanwhile."""
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert wire.health() == wire.health(SERVICE.full_name) == NOT_SERVING
    assert not client.is_model_ready("gated")
    found = scrape_until(server, lambda found: found.state("echo") == ["READY"])
    assert found.state("gated") == ["LOADING"]
    assert not found.select("nv_model_load_duration_secs", model="gated")
    rows = unique_rows(1, start=0)
    assert (client.infer("echo", infer_inputs({"INPUT0": rows})).as_numpy("OUTPUT0") == rows).all()
    for version, status in (("", "StatusCode.NOT_FOUND"), ("1", "StatusCode.UNAVAILABLE")):
        with pytest.raises(grpcclient.InferenceServerException, match="LOADING") as refusal:
            client.infer("gated", infer_inputs({"INPUT0": rows}), model_version=version)
        assert refusal.value.status() == status


def test_a_watcher_of_health_is_told_on_when_another_has_left(tmp_path: Path, gatekeeper: Gatekeeper) -> None:
    write_model(tmp_path, "gated", gatekeeper.config())
    with ServerProcess(tmp_path, until=METRICS_PORT) as server, Wire(server.grpc_address) as wire:
        stays = wire.watch_health()
        assert next(stays) == NOT_SERVING
        with Wire(server.grpc_address) as another:
            assert next(another.watch_health()) == NOT_SERVING
        gatekeeper.open()
        assert next(stays) == SERVING


def test_a_watcher_of_health_is_told_when_the_server_becomes_ready(tmp_path: Path, gatekeeper: Gatekeeper) -> None:
    write_model(tmp_path, "gated", gatekeeper.config())
    with ServerProcess(tmp_path, until=METRICS_PORT) as server, Wire(server.grpc_address) as wire:
        watched = wire.watch_health()
        assert next(watched) == NOT_SERVING
        gatekeeper.open()
        assert next(watched) == SERVING


def test_health_of_a_service_that_is_not_there(server: ServerProcess) -> None:
    with Wire(server.grpc_address) as wire, pytest.raises(grpc.RpcError) as refusal:
        wire.health("inference.Nothing")
    assert status_of(refusal.value).code is grpc.StatusCode.NOT_FOUND
