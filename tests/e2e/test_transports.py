"""What both transports do, each in its way: whatever holds for one of them only says so in its name."""

import contextlib
import gzip
import signal
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.gated_model import Gated, gated_model
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.http2 import GOAWAY, INFER, MAX_CONCURRENT_STREAMS, PING, Cut, Http2, message
from tests.e2e.server_process import LIMIT_S, NOT_WEIGHED, ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows
from tests.e2e.transports import (
    GRPCIO,
    TRANSPORTS,
    answered,
    assert_echoes,
    echo_request,
    installed,
    messages,
    request_of,
    rows_of,
)
from tests.e2e.wire import SERVICE, SERVING, Wire, status_of
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.transports

MOST_BYTES, MOST_STREAMS = 65_536, 3
INFLATE: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


@pytest.fixture(scope="module")
def gatekeeper() -> Iterator[Gatekeeper]:
    with Gatekeeper() as gatekeeper:
        yield gatekeeper


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gatekeeper: Gatekeeper, transport: str) -> Iterator[ServerProcess]:
    """A server with small limits, of ``echo`` and of ``gated``, which waits at the gate."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "echo", echo_config())
    write_model(folder, "gated", gatekeeper.config())
    limits = ("--max-message-bytes", str(MOST_BYTES), "--max-concurrent-streams", str(MOST_STREAMS))
    with ServerProcess(folder, options=("--transport", transport, *limits)) as server:
        yield server


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server.grpc_address) as wire:
        yield wire


@pytest.fixture
def gated(server: ServerProcess, gatekeeper: Gatekeeper) -> Iterator[Gated]:
    with gated_model("gated", server, gatekeeper) as gated:
        yield gated


def test_health_reflection_metadata_and_inference_are_on_one_port(wire: Wire) -> None:
    assert wire.health() == wire.health(SERVICE.full_name) == wire.health("echo") == SERVING
    assert next(wire.watch_health()) == SERVING
    assert {SERVICE.full_name, "grpc.health.v1.Health"} < set(wire.reflected_services())
    assert wire.reflected_file(SERVICE.full_name)
    assert pb.ServerLiveResponse.FromString(wire.call("ServerLive", b"")).live
    assert_echoes(wire)


def test_a_stream_of_inference_is_unimplemented_and_says_so(wire: Wire) -> None:
    status = wire.status("ModelStreamInfer", echo_request(unique_rows(1, start=0)))
    assert status.code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStreamInfer" in status.text
    assert_echoes(wire)


def test_a_method_that_is_not_there_is_unimplemented(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        for method in (f"/{SERVICE.full_name}/ModelBake", "/inference.Bakery/ModelInfer"):
            bake: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as caught:
                bake(b"", timeout=LIMIT_S)
            assert status_of(caught.value).code is grpc.StatusCode.UNIMPLEMENTED


def test_an_error_of_a_model_has_its_code_and_its_text(wire: Wire) -> None:
    status = wire.status("ModelInfer", echo_request(unique_rows(1, start=0), model="dog"))
    assert status.code is grpc.StatusCode.NOT_FOUND
    assert "dog" in status.text


def test_a_message_of_just_the_limit_is_taken(wire: Wire) -> None:
    answer = wire.infer(request_of(MOST_BYTES, start=7))
    assert np.array_equal(rows_of(answer), unique_rows(1, start=7))


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 5 * MOST_BYTES])
def test_a_message_beyond_the_limit_is_refused_and_the_next_is_answered(wire: Wire, size: int) -> None:
    status = wire.status("ModelInfer", request_of(size))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MOST_BYTES) in status.text
    assert_echoes(wire, start=size)


def test_a_message_beyond_the_limit_is_refused_to_other_methods_too(wire: Wire) -> None:
    request = pb.ModelMetadataRequest(name="n" * MOST_BYTES).SerializeToString()
    assert wire.status("ModelMetadata", request).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_echoes(wire)


def test_a_message_that_is_small_on_the_wire_but_beyond_the_limit_when_inflated_is_refused(
    server: ServerProcess, wire: Wire
) -> None:
    with grpc.insecure_channel(server.grpc_address, compression=grpc.Compression.Gzip) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        with pytest.raises(grpc.RpcError) as caught:
            infer(request_of(16 * MOST_BYTES), timeout=LIMIT_S)
    assert status_of(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_echoes(wire)


def test_the_limit_on_calls_at_once_is_announced_to_each_connection(server: ServerProcess) -> None:
    with Http2(server.grpc_address) as connection:
        assert connection.settings()[MAX_CONCURRENT_STREAMS] == MOST_STREAMS


@pytest.mark.usefixtures("gated")
def test_a_connection_that_has_more_calls_at_once_than_allowed_does_not_get_them_all_executed(
    server: ServerProcess,
) -> None:
    with Http2(server.grpc_address) as connection:
        for each in range(MOST_STREAMS + 1):
            connection.call(message(echo_request(unique_rows(1, start=each), model="gated")))
        # The one too many is refused while the others wait, or it takes the whole connection with it.
        refused = 0
        with suppress(Cut):
            refused = next(frame.stream for frame in connection.frames() if frame.ends_stream)
        assert refused in (0, 1 + 2 * MOST_STREAMS)
    with Wire(server.grpc_address) as wire:
        assert_echoes(wire)


def test_calls_beyond_the_limit_wait_in_the_client_and_end_as_answers_or_as_what_is_to_be_asked_again(
    gated: Gated, transport: str
) -> None:
    gated.ask(1)
    gated.next()
    gated.ask(*[1] * (3 * MOST_STREAMS - 1))
    gated.until_waiting(MOST_STREAMS - 1)
    gated.gatekeeper.open()
    errors = gated.answers(3 * MOST_STREAMS)
    # grpcio counts a call for a moment after its client has the answer, and refuses the call that comes in its place.
    assert transport == GRPCIO or errors == []
    for error in errors:
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert "RST_STREAM with error code 7" in error.message()


def test_a_compressed_request_is_inflated(server: ServerProcess) -> None:
    rows = unique_rows(8, start=100)
    body = message(gzip.compress(echo_request(rows)), compressed=True)
    with Http2(server.grpc_address) as connection:
        answer = connection.answer(connection.call(body, headers={"grpc-encoding": "gzip"}))
    ((compressed, payload),) = messages(answer)
    assert not compressed
    assert np.array_equal(answered(payload), rows)


def test_tritonclients_gzip_is_inflated(server: ServerProcess) -> None:
    rows = unique_rows(8, start=200)
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        result = client.infer("echo", infer_inputs({"INPUT0": rows}), compression_algorithm="gzip")
    assert np.array_equal(result.as_numpy("OUTPUT0"), rows)


def test_deflate_is_inflated_by_grpcio_and_unimplemented_by_native(server: ServerProcess, transport: str) -> None:
    rows = unique_rows(8, start=300)
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        expected: AbstractContextManager[Any] = (
            nullcontext() if transport == GRPCIO else pytest.raises(InferenceServerException)
        )
        with expected as caught:
            result = client.infer("echo", infer_inputs({"INPUT0": rows}), compression_algorithm="deflate")
    if caught is None:
        assert np.array_equal(result.as_numpy("OUTPUT0"), rows)
    else:
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_bytes_that_are_not_what_they_are_said_to_be_fail_alone(server: ServerProcess, wire: Wire) -> None:
    with Http2(server.grpc_address) as connection:
        stream = connection.call(message(b"not gzip at all", compressed=True), headers={"grpc-encoding": "gzip"})
        assert connection.answer(stream) == b""
    assert_echoes(wire)


@pytest.fixture(scope="module", params=["gzip", "deflate"])
def compressing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServerProcess]]:
    """What clients say that they take, and a server that compresses its answers."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "echo", echo_config())
    options = ("--transport", GRPCIO, "--response-compression", "high")
    with ServerProcess(folder, options=options) as server:
        yield request.param, server


def test_answers_are_compressed_on_the_wire_and_clients_do_not_notice(compressing: tuple[str, ServerProcess]) -> None:
    algorithm, server = compressing
    rows = np.zeros((8, 4), np.int64)
    accepted = {"grpc-accept-encoding": f"identity,{algorithm}"}
    with Http2(server.grpc_address) as connection:
        answer = connection.answer(connection.call(message(echo_request(rows)), headers=accepted))
    ((compressed, payload),) = messages(answer)
    assert compressed
    assert len(payload) < rows.nbytes
    assert np.array_equal(answered(INFLATE[algorithm](payload)), rows)
    with Wire(server.grpc_address) as wire:
        assert_echoes(wire)


def test_answers_are_not_compressed_for_clients_that_say_they_do_not_take_it(
    compressing: tuple[str, ServerProcess],
) -> None:
    _, server = compressing
    rows = np.zeros((8, 4), np.int64)
    accepted = {"grpc-accept-encoding": "identity"}
    with Http2(server.grpc_address) as connection:
        answer = connection.answer(connection.call(message(echo_request(rows)), headers=accepted))
    ((compressed, payload),) = messages(answer)
    assert not compressed
    assert np.array_equal(answered(payload), rows)


def test_a_request_whose_deadline_passes_in_the_queue_is_not_executed(gated: Gated) -> None:
    gated.ask(1)
    assert gated.next().rows == 1
    gated.ask_in_queue(2, client_timeout=0.5)
    (error,) = gated.answers(1)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    gated.until_waiting(0)
    gated.ask_in_queue(4)
    gated.let_go()
    # Neither alone nor as part of a batch: the next execution is that of the four rows.
    assert gated.next().rows == 4
    gated.let_go()
    assert gated.answers(2) == []
    assert gated.gatekeeper.deserted()


def test_a_request_that_is_taken_back_in_the_queue_is_not_executed(gated: Gated) -> None:
    gated.ask(1)
    assert gated.next().rows == 1
    (waiting,) = gated.ask(2)
    gated.until_waiting(1)
    waiting.cancel()
    (error,) = gated.answers(1)
    assert error.status() == "StatusCode.CANCELLED"
    gated.until_waiting(0)
    gated.let_go()
    assert gated.answers(1) == []
    assert gated.gatekeeper.deserted()


def test_a_model_that_hangs_keeps_nobody_waiting_whose_call_was_read_with_its_own(
    tmp_path: Path, transport: str
) -> None:
    # Warm-up runs four batches, and the server asks four times itself, so the first request is the ninth.
    write_model(tmp_path, "stuck", echo_config(extra=NOT_WEIGHED, parameters={"behavior": "hang", "every": 9}))
    others = [f"echo{number}" for number in range(8)]
    for name in others:
        write_model(tmp_path, name, echo_config())
    rows = unique_rows(2, start=100)
    with (
        ServerProcess(tmp_path, options=("--transport", transport)) as server,
        Http2(server.grpc_address) as connection,
    ):
        connection.settings()
        # So that all calls are there when the server next looks.
        server.send_signal(signal.SIGSTOP)
        _, *fine = (connection.call(message(echo_request(rows, name))) for name in ("stuck", *others))
        server.send_signal(signal.SIGCONT)
        for answer in connection.answers(fine).values():
            assert np.array_equal(answered(messages(answer)[0][1]), rows)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_does_not_answer_is_left_and_one_that_does_is_not(tmp_path: Path, transport: str) -> None:
    write_model(tmp_path, "echo", echo_config())
    options = ["--transport", transport, "--keepalive-seconds", "1", "--keepalive-timeout-seconds", "1"]
    with (
        ServerProcess(tmp_path, options=options) as server,
        Http2(server.grpc_address, alive=False) as dead,
        Http2(server.grpc_address) as living,
        ThreadPoolExecutor(1) as pool,
    ):
        left = pool.submit(kinds_until_cut, dead)
        # One that lives is asked every second, for as long as it takes; by itself gRPC takes a minute to give one up.
        asked = 0
        while not left.done():
            asked += any(frame.kind == PING for frame in living.frames())
            assert asked < 30
        assert PING in left.result()
        assert living.answer(living.call(message(b"rubbish"))) == b""


def kinds_until_cut(connection: Http2) -> list[int]:
    kinds: list[int] = []
    with contextlib.suppress(Cut):
        kinds.extend(frame.kind for frame in connection.frames())
    return kinds


def test_a_connection_that_is_old_is_told_to_go(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    options = ["--transport", "grpcio", "--max-connection-age-seconds", "1"]
    with ServerProcess(tmp_path, options=options) as server, Http2(server.grpc_address) as old:
        assert any(frame.kind == GOAWAY for frame in old.frames())
