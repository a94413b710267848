"""Mistakes in every RPC beside inference, health and reflection among them: told by code and by name, and harmless."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tests.e2e.malformed_control import ABSENT_VERSIONS, GROUPS, NAMES, NO_MESSAGES, ControlCase, for_model, request_of
from tests.e2e.malformed_requests import ROW, VALID
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.wire import SERVING, Wire, status_of
from tritonclient.grpc import service_pb2 as pb

pytestmark = pytest.mark.protocol

OPTIONS = ("--model-control-mode", "explicit", "--load-models", "echo")
NONE = ("--model-control-mode", "none")
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("malformed_control") / "repository"
    for name in ("echo", "spare", ".hidden", "__pycache__"):
        write_model(repository, name, echo_config())
    write_model(repository, "broken", echo_config(backend="warp"))
    # What a path out of the repository would find.
    write_model(repository.parent, "outside", echo_config())
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, options=OPTIONS) as server:
        yield server
        assert server.terminate() == 0
        assert_nothing_broke(server)


@pytest.fixture(scope="module")
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server.grpc_address) as wire:
        yield wire


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


@pytest.fixture(autouse=True)
def unharmed(server: ServerProcess, wire: Wire) -> Iterator[None]:
    """Whatever a test sends: afterwards the same is served, and nothing broke."""
    yield
    request, expected = VALID["echo"]
    assert list(wire.infer(request).raw_output_contents) == expected == [ROW]
    index = pb.RepositoryIndexResponse.FromString(wire.call("RepositoryIndex", b""))
    rows = {(row.name, row.version, row.state) for row in index.models}
    assert rows >= {("echo", "1", "READY"), ("spare", "", "")}
    assert {name for name, _, _ in rows} == {"echo", "spare", "broken"}
    assert server.running
    assert_nothing_broke(server)


def assert_nothing_broke(server: ServerProcess) -> None:
    assert "Traceback" not in server.log
    # That a model could not be loaded is said as an error, and is the only one.
    assert [line for line in server.log.splitlines() if " ERROR " in line and "broken" not in line] == []


def complaint(wire: Wire, case: ControlCase) -> str | None:
    status = wire.status(case.rpc, case.request)
    if status.code is case.code and all(fragment in status.text for fragment in case.fragments):
        return None
    return f"{case}: should be {case.code} with {case.fragments}, is {status}"


@pytest.mark.parametrize("group", GROUPS)
def test_a_mistaken_call_is_refused_by_name(wire: Wire, group: str) -> None:
    cases = list(GROUPS[group]())
    assert len({str(case) for case in cases}) == len(cases)
    assert [each for case in cases if (each := complaint(wire, case))] == []


def test_what_is_not_there_is_not_ready(wire: Wire) -> None:
    asked = [("nobody", version) for version in ("", "1")] + [("echo", version) for version in ABSENT_VERSIONS]
    for model, version in [*((name, "") for name in (*NAMES, "", "spare", "broken")), *asked]:
        answer = wire.call("ModelReady", for_model("ModelReady", model, version))
        assert not pb.ModelReadyResponse.FromString(answer).ready, (model, version)


def test_a_path_out_of_the_repository_loads_nothing(wire: Wire, repository: Path) -> None:
    outside = repository.parent / "outside"
    for name in ("../outside", str(outside), f"echo/../../{outside.name}", "outside"):
        status = wire.status("RepositoryModelLoad", for_model("RepositoryModelLoad", name))
        assert status.code is grpc.StatusCode.INTERNAL
        assert f"failed to load '{name}'" in status.text
    assert not list(repository.parent.rglob("evil*"))


def test_a_model_that_was_not_loaded_cannot_be_asked_about(wire: Wire) -> None:
    for rpc in ("ModelMetadata", "ModelConfig", "ModelInfer"):
        status = wire.status(rpc, for_model(rpc, "spare"))
        assert status.code is grpc.StatusCode.NOT_FOUND
        assert "'spare'" in status.text


def test_without_control_a_load_is_unavailable_however_it_is_asked(repository: Path) -> None:
    with ServerProcess(repository, options=NONE) as server, Wire(server.grpc_address) as wire:
        for rpc, what in (("RepositoryModelLoad", "load"), ("RepositoryModelUnload", "unload")):
            for name in ("echo", "../echo", ""):
                status = wire.status(rpc, for_model(rpc, name))
                assert status.code is grpc.StatusCode.UNAVAILABLE
                assert f"explicit model {what} is not allowed" in status.text
            wrong = request_of(rpc, model_name="echo", repository_name="..")
            assert wire.status(rpc, wrong).code is grpc.StatusCode.UNIMPLEMENTED


def test_statistics_of_all_models_have_no_bad_version(wire: Wire) -> None:
    status = wire.status("ModelStatistics", for_model("ModelStatistics", "", "x"))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'x'" in status.text


def checked(channel: grpc.Channel, payload: bytes) -> grpc.StatusCode:
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CHECK)
    try:
        check(payload, timeout=LIMIT_S)
    except grpc.RpcError as error:
        return status_of(error).code
    return grpc.StatusCode.OK


def first_watched(channel: grpc.Channel, service: str) -> int:
    watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    call: Any = watch(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=LIMIT_S)
    status = health_pb2.HealthCheckResponse.FromString(next(call)).status
    call.cancel()
    return status


def test_the_health_of_what_is_not_there_is_not_found(channel: grpc.Channel) -> None:
    for name in (*NAMES, "inference.GRPCInferenceService/", "grpc.health.v1.Health"):
        payload = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        assert checked(channel, payload) is grpc.StatusCode.NOT_FOUND, name
        # As the protocol of health checks has it: the service may come to be.
        assert first_watched(channel, name) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, name
    assert first_watched(channel, "echo") == SERVING


def reflected(channel: grpc.Channel, payload: bytes) -> Any:
    stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(REFLECTION)
    answer = next(iter(stream(iter([payload]), timeout=LIMIT_S)))
    return reflection_pb2.ServerReflectionResponse.FromString(answer)


def test_reflection_says_what_it_does_not_find(channel: grpc.Channel) -> None:
    extension = reflection_pb2.ExtensionRequest(containing_type="inference.ModelInferRequest", extension_number=9)
    for question in (
        {"file_by_filename": "../../../etc/passwd"},
        {"file_by_filename": ""},
        {"file_containing_symbol": "inference.Nothing"},
        {"file_containing_symbol": "\0"},
        {"file_containing_symbol": "m" * 2**20},
        {"file_containing_extension": extension},
        {"all_extension_numbers_of_type": "inference.Nothing"},
        {},
    ):
        request = reflection_pb2.ServerReflectionRequest(**question)
        answer = reflected(channel, request.SerializeToString())
        assert answer.error_response.error_code in (
            grpc.StatusCode.NOT_FOUND.value[0],
            grpc.StatusCode.INVALID_ARGUMENT.value[0],
        ), question


# They have a server each, since what they show is in its log.
@pytest.mark.parametrize("method", [CHECK, WATCH, REFLECTION])
def test_bytes_that_are_no_message_of_health_or_reflection_are_refused(repository: Path, method: str) -> None:
    with ServerProcess(repository, options=OPTIONS) as server, grpc.insecure_channel(server.grpc_address) as channel:
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
        codes = set()
        for payload in (NO_MESSAGES["garbage"], b"\x0a\x01\xff"):
            with pytest.raises(grpc.RpcError) as refusal:
                next(iter(stream(iter([payload]), timeout=LIMIT_S)))
            codes.add(status_of(refusal.value).code)
        assert server.terminate() == 0
    assert_nothing_broke(server)
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
