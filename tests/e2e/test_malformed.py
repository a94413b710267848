"""What no client should send: each mistake is told by code and by name, and does no harm."""

import random
from collections.abc import Iterator

import grpc
import pytest
from tests.e2e.malformed_requests import CASES, MODELS, VALID, Case
from tests.e2e.scrape import scrape
from tests.e2e.server_process import ServerProcess, write_model
from tests.e2e.wire import SERVICE, Wire, infer_request
from tritonclient.grpc import service_pb2 as pb

ANSWERED = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelInfer",
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
def test_a_malformed_request_is_refused_by_name(wire: Wire, case: Case):
    status = wire.status("ModelInfer", case.request)
    assert status.code is case.code, status
    for fragment in case.fragments:
        assert fragment in status.text


def test_valid_requests_are_answered_between_malformed_ones(wire: Wire):
    for model, (request, expected) in VALID.items():
        for case in CASES[::7]:
            wire.status("ModelInfer", case.request)
        assert wire.infer(request).raw_output_contents == expected, model


def test_malformed_and_valid_requests_at_once_do_not_meet(wire: Wire):
    call = wire.channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
    request, expected = VALID["echo"]
    futures = [(call.future(case.request), call.future(request)) for case in CASES]
    for (malformed, valid), case in zip(futures, CASES, strict=True):
        assert malformed.code() is case.code
        assert pb.ModelInferResponse.FromString(valid.result()).raw_output_contents == expected


def test_requests_with_flipped_bits_end_in_an_answer_or_a_refusal(wire: Wire):
    dice = random.Random(4)
    acceptable = {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
    for request, _ in VALID.values():
        for _ in range(60):
            damaged = bytearray(request)
            for _ in range(dice.randint(1, 4)):
                damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            del damaged[dice.choice([len(damaged), dice.randrange(len(damaged))]) :]
            status = wire.status("ModelInfer", bytes(damaged))
            assert status.code in acceptable, (status, bytes(damaged))


@pytest.mark.parametrize("rpc", ANSWERED)
def test_bytes_that_are_no_message_are_refused(wire: Wire, rpc: str):
    status = wire.status(rpc, GARBAGE)
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{rpc}Request" in status.text


@pytest.mark.parametrize("rpc", UNIMPLEMENTED)
@pytest.mark.parametrize("payload", [b"", GARBAGE], ids=["empty", "garbage"])
def test_an_rpc_that_is_not_there_says_so(wire: Wire, rpc: str, payload: bytes):
    status = wire.status(rpc, payload)
    assert status.code is grpc.StatusCode.UNIMPLEMENTED
    assert rpc in status.text
    assert len(status.text.split()) > 5, "a sentence"


def test_an_rpc_of_another_protocol_is_unimplemented(wire: Wire):
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
):
    request = getattr(pb, f"{rpc}Request")(name=model, version=version)
    status = wire.status(rpc, request.SerializeToString())
    assert status.code is code
    assert fragment in status.text


@pytest.mark.parametrize(("model", "version"), [("nobody", ""), ("", ""), ("echo", "2")])
def test_an_unknown_model_is_not_ready_rather_than_an_error(wire: Wire, model: str, version: str):
    request = pb.ModelReadyRequest(name=model, version=version)
    answer = pb.ModelReadyResponse.FromString(wire.call("ModelReady", request.SerializeToString()))
    assert not answer.ready


def test_refused_requests_count_as_failures_of_the_model_they_named(server: ServerProcess, wire: Wire):
    labels = {"model": "echo", "version": "1", "reason": "OTHER"}
    before = scrape(server).total("nv_inference_request_failure", **labels)
    wire.status("ModelInfer", infer_request("echo", []))
    assert scrape(server).total("nv_inference_request_failure", **labels) == before + 1
