"""Requests share batches as their model's configuration says, and instances work at the same time.

The gated backend tells what executes, and holds it until the test lets it go, so no clock decides what is seen.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.gated_model import FAILURE, NEVER_US, PENDING, SUCCESS, Gated, gated_model, of_model, serving_gated
from tests.e2e.gatekeeper import Arrival, Gatekeeper
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows

pytestmark = pytest.mark.protocol

# What each model's configuration says of batches. One test has one model, so that it can count from nothing.
CONFIGS = {
    "sharing": "dynamic_batching { }",
    "not_fitting": "dynamic_batching { }",
    "alone": "",
    "preferring": f"dynamic_batching {{ preferred_batch_size: [ 4 ] max_queue_delay_microseconds: {NEVER_US} }}",
    "filling": f"dynamic_batching {{ max_queue_delay_microseconds: {NEVER_US} }}",
    "delaying": "dynamic_batching { max_queue_delay_microseconds: 200000 }",
    "expiring": f"dynamic_batching {{ max_queue_delay_microseconds: {NEVER_US} }}",
    "refusing": "dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
    "leaving": "dynamic_batching { }",
    "doubled": "dynamic_batching { } instance_group { count: 2 }",
    "warmed": "dynamic_batching { } instance_group { count: 2 }",
}


@pytest.fixture(scope="module")
def gatekeeper() -> Iterator[Gatekeeper]:
    with Gatekeeper() as gatekeeper:
        yield gatekeeper


@pytest.fixture(scope="module")
def server(gatekeeper: Gatekeeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving_gated(tmp_path_factory.mktemp("batching"), gatekeeper, CONFIGS) as server:
        yield server


@pytest.fixture
def gated(request: pytest.FixtureRequest, server: ServerProcess, gatekeeper: Gatekeeper) -> Iterator[Gated]:
    with gated_model(request.param, server, gatekeeper) as gated:
        yield gated


@of_model("sharing")
def test_requests_that_wait_for_an_execution_share_the_next(gated: Gated) -> None:
    gated.ask(1)
    first = gated.next()
    gated.ask_in_queue(1, 2, 1, 3)
    gated.gatekeeper.let_go(first)
    second = gated.next()
    assert (first.rows, second.rows) == (1, 7)
    gated.gatekeeper.open()
    assert gated.answers(5) == []
    gated.scrape_until(SUCCESS, 5)
    assert gated.total("nv_inference_exec_count") == 2
    assert gated.total("nv_inference_count") == 8
    assert gated.total("preheat_batch_rows_sum") == 8
    assert gated.total(PENDING) == 0


@of_model("not_fitting")
def test_a_request_that_does_not_fit_leads_the_next_batch(gated: Gated) -> None:
    gated.ask(1)
    first = gated.next()
    gated.ask_in_queue(5, 4, 4)
    gated.gatekeeper.let_go(first)
    second = gated.next()
    gated.gatekeeper.let_go(second)
    assert (second.rows, gated.next().rows) == (5, 8)
    gated.gatekeeper.open()
    assert gated.answers(4) == []


@of_model("alone")
def test_without_dynamic_batching_each_request_runs_alone(gated: Gated) -> None:
    gated.ask(1)
    first = gated.next()
    gated.ask_in_queue(2, 3)
    gated.gatekeeper.open()
    assert first.rows == 1
    assert gated.answers(3) == []
    gated.scrape_until(SUCCESS, 3)
    assert gated.total("nv_inference_exec_count") == 3


@of_model("preferring")
def test_a_preferred_size_runs_as_soon_as_it_is_reached(gated: Gated) -> None:
    gated.ask_in_queue(1, 2)
    assert gated.gatekeeper.deserted()
    gated.ask(1)
    assert gated.next().rows == 4
    gated.ask_in_queue(3)
    gated.gatekeeper.open()
    assert gated.answers(3) == []
    # The fourth still waits for one row more.
    gated.ask(1)
    assert gated.answers(2) == []
    gated.scrape_until(SUCCESS, 5)
    assert gated.total("nv_inference_exec_count") == 2


@of_model("filling")
def test_a_full_batch_does_not_wait_for_its_delay(gated: Gated) -> None:
    gated.ask_in_queue(3, 4)
    assert gated.gatekeeper.deserted()
    gated.ask(1)
    assert gated.next().rows == 8
    gated.gatekeeper.open()
    assert gated.answers(3) == []


@of_model("delaying")
def test_a_lone_request_runs_after_its_delay_and_not_before(gated: Gated) -> None:
    gated.gatekeeper.open()
    gated.ask(1)
    assert gated.answers(1) == []
    gated.scrape_until(SUCCESS, 1)
    assert gated.total("nv_inference_queue_duration_us") >= 200_000
    assert gated.total("preheat_queue_duration_seconds_bucket", le="0.1") == 0


@of_model("expiring")
def test_a_deadline_that_passes_in_the_queue_ends_the_request_without_running_it(gated: Gated) -> None:
    gated.ask(1, client_timeout=0.2)
    (error,) = gated.answers(1)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED" or "Request timeout expired" in error.message()
    gated.scrape_until(FAILURE, 1)
    assert gated.total(PENDING) == 0
    assert gated.total("nv_inference_exec_count") == 0
    assert gated.gatekeeper.deserted()


@of_model("refusing")
def test_a_full_queue_turns_requests_away_and_keeps_those_it_has(gated: Gated) -> None:
    gated.ask(1)
    gated.next()
    gated.ask_in_queue(1, 1)
    gated.ask(1, 1)
    errors = gated.answers(2)
    assert [error.status() for error in errors] == ["StatusCode.UNAVAILABLE"] * 2
    assert all("Exceeds maximum queue size" in error.message() for error in errors)
    assert gated.total(FAILURE, reason="REJECTED") == 2
    gated.gatekeeper.open()
    assert gated.answers(3) == []


@of_model("leaving")
def test_a_caller_that_leaves_the_queue_leaves_its_peers_their_batch(gated: Gated) -> None:
    gated.ask(1)
    first = gated.next()
    gated.ask_in_queue(2)
    (leaver,) = gated.ask(3)
    gated.until_waiting(2)
    gated.ask_in_queue(1, already=2)
    leaver.cancel()
    assert [error.status() for error in gated.answers(1)] == ["StatusCode.CANCELLED"]
    gated.scrape_until(FAILURE, 1, reason="CANCELED")
    gated.gatekeeper.let_go(first)
    assert gated.next().rows == 3
    gated.gatekeeper.open()
    assert gated.answers(3) == []


@of_model("doubled")
def test_two_instances_run_at_the_same_time_on_threads_of_their_own(gated: Gated) -> None:
    gated.ask(8, 8)
    one, other = gated.next(), gated.next()
    assert {one.instance, other.instance} == {0, 1}
    assert one.thread != other.thread
    # While the first stands still, the other goes on.
    gated.ask_in_queue(2)
    gated.gatekeeper.let_go(other)
    assert gated.next().instance == other.instance
    gated.gatekeeper.open()
    assert gated.answers(3) == []


@of_model("warmed")
def test_the_threads_that_serve_are_those_that_warmed_every_bucket(gated: Gated) -> None:
    arrivals = gated.gatekeeper.passed
    executions = [arrival for arrival in arrivals if (arrival.model, arrival.what) == ("warmed", "execute")]
    warmed = {thread: {each.rows for each in executions if each.thread == thread} for thread in _threads(executions)}
    assert list(warmed.values()) == [{1, 2, 4, 8}] * 2
    gated.ask(8, 8)
    assert _threads([gated.next(), gated.next()]) == warmed.keys()
    gated.gatekeeper.open()
    assert gated.answers(2) == []


def _threads(arrivals: Sequence[Arrival]) -> set[int]:
    return {arrival.thread for arrival in arrivals}


def test_batches_of_an_engine_with_fixed_sizes_are_padded_and_cut_back(tmp_path: Path) -> None:
    write_model(tmp_path, "padded", echo_config(parameters={"specializes_on_shape": True, "preheat.buckets": "4,8"}))
    with ServerProcess(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_address) as client:
        for size in range(1, 9):
            rows = unique_rows(size, start=100 * size)
            result = client.infer("padded", infer_inputs({"INPUT0": rows}))
            assert np.array_equal(result.as_numpy("OUTPUT0"), rows)
        found = scrape_until(server, lambda found: found.total("nv_inference_request_success") == 8)
        assert found.total("nv_inference_count") == sum(range(1, 9)), "padding is no inference"


# Each row of a batch takes as long as the batch has rows.
STEEP_SOURCE = b"""
import time
import torch


class Steep(torch.nn.Module):
    def forward(self, INPUT0):
        time.sleep(0.005 * len(INPUT0) ** 2)
        return INPUT0


def build_model():
    return Steep()
"""
STEEP_CONFIG = """
backend: "eager"
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_INT64 dims: [ 4 ] }
output { name: "OUTPUT0" data_type: TYPE_INT64 dims: [ 4 ] }
dynamic_batching { PREFERRED }
"""


@pytest.mark.parametrize(
    ("preferred", "executions"), [("", 8), ("preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 3600000000", 1)]
)
def test_requests_are_not_joined_where_that_makes_each_slower_unless_a_size_is_preferred(
    tmp_path: Path, preferred: str, executions: int
) -> None:
    folder = write_model(tmp_path, "steep", STEEP_CONFIG.replace("PREFERRED", preferred))
    (folder / "1" / "model.py").write_bytes(STEEP_SOURCE)
    with ServerProcess(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_address) as client:
        warned = "no more than 1 rows are joined (INPUT0 [4]): in larger batches each takes longer"
        assert (warned in server.log) == (not preferred)
        inputs = infer_inputs({"INPUT0": unique_rows(1, start=0)})
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: client.infer("steep", inputs), range(8)))
        found = scrape_until(server, lambda found: found.total("nv_inference_count", model="steep") == 8)
        assert found.total("nv_inference_exec_count", model="steep") == executions
