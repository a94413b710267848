"""What clients learn of the repository, and how they change what is served of it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs
from tests.e2e.wire import NOT_SERVING, SERVING, Wire
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.protocol

EXPLICIT = ("--model-control-mode", "explicit")
NONE = ("--model-control-mode", "none")
ROWS = np.arange(8, dtype=np.int64).reshape(2, 4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    for name in ("echo", "other"):
        write_model(tmp_path, name, echo_config())
    with ServerProcess(tmp_path, options=(*EXPLICIT, "--load-models", "echo")) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def index(client: Any) -> list[tuple[str, str, str, str]]:
    return [(row.name, row.version, row.state, row.reason) for row in client.get_model_repository_index().models]


def infer(client: Any, model: str = "echo") -> Any:
    return client.infer(model, infer_inputs({"INPUT0": ROWS}), client_timeout=LIMIT_S).as_numpy("OUTPUT0")


def test_the_index_lists_what_serves_and_what_could(client: Any) -> None:
    assert index(client) == [("echo", "1", "READY", ""), ("other", "", "", "")]


def test_a_model_is_loaded_and_unloaded_when_clients_say_so(server: ServerProcess, client: Any) -> None:
    client.load_model("other")
    assert client.is_model_ready("other")
    assert (infer(client, "other") == ROWS).all()
    client.unload_model("other")
    assert not client.is_model_ready("other")
    # The call returns once nothing is routed to it; requests in flight may still be running then.
    scrape_until(server, lambda found: found.state("other") == ["UNLOADED"])
    assert ("other", "1", "UNAVAILABLE", "unloaded") in index(client)
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match=r"has no available versions: version 1 .*unloaded"):
        infer(client, "other")
    client.load_model("other")
    assert (infer(client, "other") == ROWS).all()


def test_a_model_that_is_loaded_again_is_served_without_a_gap(
    tmp_path: Path, server: ServerProcess, client: Any
) -> None:
    stop = threading.Event()
    failures: list[Exception] = []
    answers = 0

    def ask() -> None:
        nonlocal answers
        with grpcclient.InferenceServerClient(server.grpc_address) as mine:
            while not stop.is_set():
                try:
                    assert (infer(mine) == ROWS).all()
                    answers += 1
                except Exception as exc:
                    failures.append(exc)
                    return

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(10):
        client.load_model("echo")
    (tmp_path / "echo" / "2").mkdir()
    client.load_model("echo")
    stop.set()
    asking.join(LIMIT_S)
    assert failures == []
    assert answers > 0
    assert client.get_model_metadata("echo").versions == ["2"]


def test_a_load_that_fails_says_why_and_leaves_what_served(tmp_path: Path, client: Any) -> None:
    (tmp_path / "echo" / "config.pbtxt").write_text(echo_config(backend="warp"))
    with pytest.raises(InferenceServerException, match=r"load failed for model 'echo': .*unknown backend 'warp'"):
        client.load_model("echo")
    assert (infer(client) == ROWS).all()
    assert client.is_server_ready()


def test_what_is_in_no_repository_cannot_be_loaded_or_unloaded(client: Any) -> None:
    for name in ("nope", "../echo", ""):
        with pytest.raises(InferenceServerException, match=f"failed to load '{name}'"):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="failed to unload 'nope'"):
        client.unload_model("nope")


def test_without_control_nothing_is_loaded_by_rpc(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    with (
        ServerProcess(tmp_path, options=NONE) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        for control in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match=r"explicit model .* is not allowed"):
                control("echo")


def test_statistics_add_up_with_what_was_asked(client: Any) -> None:
    for _ in range(5):
        infer(client)
    with pytest.raises(InferenceServerException):
        client.infer("echo", infer_inputs({"INPUT0": ROWS[:, :3]}))
    (stats,) = client.get_inference_statistics("echo").model_stats
    assert (stats.name, stats.version) == ("echo", "1")
    assert (stats.inference_count, stats.execution_count) == (10, 5)
    counts = stats.inference_stats
    assert (counts.success.count, counts.queue.count, counts.compute_infer.count, counts.fail.count) == (5, 5, 5, 1)
    parts = (counts.queue, counts.compute_input, counts.compute_infer, counts.compute_output)
    assert 0 < sum(part.ns for part in parts) <= counts.success.ns
    assert [(size.batch_size, size.compute_infer.count) for size in stats.batch_stats] == [(2, 5)]
    assert stats.last_inference > 0
    with pytest.raises(InferenceServerException, match="requested model 'nope' is not available"):
        client.get_inference_statistics("nope")


def test_health_goes_by_model_too(server: ServerProcess, client: Any) -> None:
    with Wire(server.grpc_address) as wire:
        assert wire.health("echo") == SERVING
        client.load_model("other")
        assert wire.health("other") == SERVING
        client.unload_model("other")
        assert wire.health("other") == NOT_SERVING
        assert wire.health() == SERVING


def test_reflection_lists_the_services_and_describes_them(server: ServerProcess) -> None:
    with Wire(server.grpc_address) as wire:
        assert "inference.GRPCInferenceService" in wire.reflected_services()
        assert b"ModelInferRequest" in wire.reflected_file("inference.GRPCInferenceService")
