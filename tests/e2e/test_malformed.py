"""What no client should send: each mistake is told by code and by name, and does no harm."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tests.e2e.malformed_requests import CASES, MODELS, VALID, Case
from tests.e2e.scrape import scrape
from tests.e2e.server_process import ServerProcess, write_model
from tests.e2e.wire import SERVICE, Wire, infer_request
from tritonclient.grpc import service_pb2 as pb

pytestmark = pytest.mark.protocol

ANSWERED = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelInfer",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
)  # fmt: skip
UNIMPLEMENTED = [method.name for method in SERVICE.methods if method.name not in ANSWERED]
GARBAGE = b"\xff\xff\xff\xff garbage"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("malformed")
    for name, config in MODELS.items():
        write_model(repository, name, config)
    with ServerProcess(repository) as server:
        yield server
        # After everything in this module.
        assert server.running
        assert "Traceback" not in server.log
        assert server.log.count(" ERROR ") == 0


@pytest.fixture(scope="module")
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server.grpc_address) as wire:
        yield wire
        for model, (request, expected) in VALID.items():
            assert wire.infer(request).raw_output_contents == expected, f"{model} does not answer any more"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_a_malformed_request_is_refused_by_name(wire: Wire, case: Case) -> None:
    status = wire.status("ModelInfer", case.request)
    assert status.code is case.code, status
    for fragment in case.fragments:
        assert fragment in status.text


def test_valid_requests_are_answered_between_malformed_ones(wire: Wire) -> None:
    for model, (request, expected) in VALID.items():
        for case in CASES[::7]:
            wire.status("ModelInfer", case.request)
        assert wire.infer(request).raw_output_contents == expected, model


def test_malformed_and_valid_requests_at_once_do_not_meet(wire: Wire) -> None:
    request, expected = VALID["echo"]

    def send_both(case: Case) -> None:
        assert wire.status("ModelInfer", case.request).code is case.code
        assert wire.infer(request).raw_output_contents == expected

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send_both, CASES * 2))


def test_requests_with_flipped_bits_end_in_an_answer_or_a_refusal(wire: Wire) -> None:
    dice = np.random.default_rng(4)
    acceptable = {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
    for request, _ in VALID.values():
        for _ in range(60):
            damaged = np.frombuffer(request, np.uint8).copy()
            places = dice.integers(len(damaged), size=dice.integers(1, 5))
            damaged[places] ^= 1 << dice.integers(8, size=len(places), dtype=np.uint8)
            # Half of them are cut short as well.
            payload = damaged[: max(len(damaged) // 2, dice.integers(2 * len(damaged)))].tobytes()
            status = wire.status("ModelInfer", payload)
            assert status.code in acceptable, (status, payload)


@pytest.mark.parametrize("rpc", ANSWERED)
def test_bytes_that_are_no_message_are_refused(wire: Wire, rpc: str) -> None:
    status = wire.status(rpc, GARBAGE)
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{rpc}Request" in status.text


@pytest.mark.parametrize("rpc", UNIMPLEMENTED)
@pytest.mark.parametrize("payload", [b"", GARBAGE], ids=["empty", "garbage"])
def test_an_rpc_that_is_not_there_says_so(wire: Wire, rpc: str, payload: bytes) -> None:
    status = wire.status(rpc, payload)
    assert status.code is grpc.StatusCode.UNIMPLEMENTED
    assert rpc in status.text
    assert len(status.text.split()) > 5, "a sentence"


def test_an_rpc_of_another_protocol_is_unimplemented(wire: Wire) -> None:
    assert wire.status("ModelDance", b"").code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("rpc", ["ModelMetadata", "ModelConfig"])
@pytest.mark.parametrize(
    ("model", "version", "code", "fragment"),
    [
        ("nobody", "", grpc.StatusCode.NOT_FOUND, "'nobody'"),
        ("", "", grpc.StatusCode.NOT_FOUND, "''"),
        ("echo", "2", grpc.StatusCode.NOT_FOUND, "version 2"),
        ("echo", "one", grpc.StatusCode.INVALID_ARGUMENT, "'one'"),
    ],
)
def test_questions_about_what_is_not_there(
    wire: Wire, rpc: str, model: str, version: str, code: grpc.StatusCode, fragment: str
) -> None:
    request = getattr(pb, f"{rpc}Request")(name=model, version=version)
    status = wire.status(rpc, request.SerializeToString())
    assert status.code is code
    assert fragment in status.text


@pytest.mark.parametrize(("model", "version"), [("nobody", ""), ("", ""), ("echo", "2")])
def test_an_unknown_model_is_not_ready_rather_than_an_error(wire: Wire, model: str, version: str) -> None:
    request = pb.ModelReadyRequest(name=model, version=version)
    answer = pb.ModelReadyResponse.FromString(wire.call("ModelReady", request.SerializeToString()))
    assert not answer.ready


def test_refused_requests_count_as_failures_of_the_model_they_named(server: ServerProcess, wire: Wire) -> None:
    labels = {"model": "echo", "version": "1", "reason": "OTHER"}
    before = scrape(server).total("nv_inference_request_failure", **labels)
    wire.status("ModelInfer", infer_request("echo", []))
    assert scrape(server).total("nv_inference_request_failure", **labels) == before + 1
