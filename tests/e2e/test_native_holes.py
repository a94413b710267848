"""What is wrong with the version of pygrpc-native that is pinned, as docs/transports.md tells operators.

These tests pass as long as the library has its holes. **One that fails is good news**: a release has closed a hole, so
read what else it changed, vet it, and change the pin, the documentation, this file and what the server does about it.
"""

import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.e2e.http2 import INFER, WINDOW_UPDATE, Cut, Http2, message
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.tensors import unique_rows
from tests.e2e.transports import GRPCIO, NATIVE, answered, assert_echoes, echo_request, messages, request_of
from tests.e2e.wire import Wire, status_of

pytestmark = pytest.mark.transports

pygrpc_native = pytest.importorskip("pygrpc_native")

VETTED = "0.5.0"
LIMIT_BYTES = 2**20
_BARE_FRONT = Path(__file__).with_name("bare_front.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "echo", echo_config())
    return folder


@pytest.fixture
def native(folder: Path) -> Iterator[ServerProcess]:
    options = ("--transport", NATIVE, "--max-message-bytes", str(LIMIT_BYTES))
    with ServerProcess(folder, options=options) as server:
        yield server


@pytest.fixture
def grpcio(folder: Path) -> Iterator[ServerProcess]:
    options = ("--transport", GRPCIO, "--max-message-bytes", str(LIMIT_BYTES))
    with ServerProcess(folder, options=options) as server:
        yield server


def most_memory_bytes(server: ServerProcess) -> int:
    """The most that the server's process has had in memory so far."""
    for line in Path(f"/proc/{server._process.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


def test_the_version_is_the_one_that_was_vetted() -> None:
    assert version("pygrpc-native") == VETTED


# What a request is not: gRPC asks for POST and a content type that begins with application/grpc.
NOT_GRPC: dict[str, dict[str, str | None]] = {
    "another content type": {"content_type": "application/json"},
    "no content type": {"content_type": None},
    "another method": {"method": "GET"},
    "a query": {"path": f"{INFER}?x=1"},
}


def asks_as(server: ServerProcess, unlike: dict[str, str | None]) -> bytes:
    """What is answered to a request that is not gRPC but for its body."""
    with Http2(server.grpc_address) as connection:
        body = message(echo_request(unique_rows(2, start=50)))
        path, method = unlike.get("path") or INFER, unlike.get("method") or "POST"
        content_type = unlike.get("content_type", "application/grpc")
        with suppress(Cut):
            return connection.answer(connection.call(body, path=path, method=method, content_type=content_type))
    return b""


def test_what_is_not_grpc_is_served_as_if_it_were(native: ServerProcess) -> None:
    for name, unlike in NOT_GRPC.items():
        ((_, payload),) = messages(asks_as(native, unlike))
        assert np.array_equal(answered(payload), unique_rows(2, start=50)), name


def test_grpcio_does_not_serve_another_method(grpcio: ServerProcess) -> None:
    assert asks_as(grpcio, NOT_GRPC["another method"]) == b""
    assert asks_as(grpcio, NOT_GRPC["a query"]) == b""


def test_a_message_is_inflated_whole_before_anyone_can_ask_how_large_it_is(native: ServerProcess) -> None:
    # 64 KB on the wire. Refused it is, but by this server, which names the size that it had already been given.
    size = 64 * 2**20
    before = most_memory_bytes(native)
    with grpc.insecure_channel(native.grpc_address, compression=grpc.Compression.Gzip) as channel:
        code, text = refusal(channel, request_of(size))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(size) in text
    assert most_memory_bytes(native) - before > size / 2


def test_a_message_is_received_whole_before_anyone_can_ask_how_large_it_is(native: ServerProcess) -> None:
    size = 200 * 2**20
    before = most_memory_bytes(native)
    with grpc.insecure_channel(native.grpc_address) as channel:
        code, text = refusal(channel, request_of(size))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(size) in text
    assert most_memory_bytes(native) - before > size / 2
    with Wire(native.grpc_address) as wire:
        assert_echoes(wire)


def test_grpcio_does_not_receive_what_it_will_not_take(grpcio: ServerProcess) -> None:
    size = 200 * 2**20
    before = most_memory_bytes(grpcio)
    with grpc.insecure_channel(grpcio.grpc_address) as channel:
        code, _ = refusal(channel, request_of(size))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert most_memory_bytes(grpcio) - before < size / 4


def refusal(channel: grpc.Channel, payload: bytes) -> tuple[grpc.StatusCode, str]:
    infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
    with pytest.raises(grpc.RpcError) as caught:
        infer(payload, timeout=LIMIT_S)
    status = status_of(caught.value)
    return status.code, status.text


# The beginning of a message that would have 4 GiB.
CLAIM = struct.pack(">?I", False, 2**32 - 1) + b"x"


def test_a_claimed_length_is_trusted_so_that_a_few_bytes_end_the_process() -> None:
    with subprocess.Popen(
        [sys.executable, str(_BARE_FRONT), INFER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with Http2(f"127.0.0.1:{int(process.stdout.readline())}") as connection:
                claim_until_cut(connection)
            code = process.wait(LIMIT_S)
            assert code == -signal.SIGABRT
            assert "memory allocation of 4294967301 bytes failed" in process.stderr.read()
        finally:
            process.kill()


def claim_until_cut(connection: Http2) -> None:
    """Announce messages that never come, up to 64 GiB of them, and see the connection end."""
    with suppress(Cut):
        for _ in range(16):
            connection.call(CLAIM, ends=False)
    # A peer that lives would answer, or wait for the rest.
    with pytest.raises(Cut):
        list(connection.frames())


def test_grpcio_survives_the_same_bytes(grpcio: ServerProcess) -> None:
    with Http2(grpcio.grpc_address) as connection, suppress(Cut):
        for _ in range(16):
            connection.call(CLAIM, ends=False)
    with Wire(grpcio.grpc_address) as wire:
        assert_echoes(wire)


class Front:
    """The library in this process, answering echo calls by hand."""

    def __init__(self) -> None:
        self.front = pygrpc_native.NativeGrpcFront("127.0.0.1:0", [(INFER, False)], call_details=True, metrics=True)
        self.front.start()
        self.address = f"127.0.0.1:{self.front.bound_port}"

    def receive(self, count: int) -> list[int]:
        """The numbers of the next ``count`` calls."""
        calls: list[int] = []
        while len(calls) < count:
            events = self.front.recv_batch(count, timeout_ms=round(1000 * LIMIT_S))
            assert events, "no more calls come"
            calls += [call for _, call, *_ in events]
        return calls


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front()
    yield front
    front.front.close()


def test_close_loses_an_answer_that_was_accepted_and_is_not_read_yet(front: Front) -> None:
    with Http2(front.address, patient=False) as connection:
        stream = connection.call(message(b"request"))
        (call,) = front.receive(1)
        size = 8 * 2**20
        assert front.front.respond(call, bytes(size))
        # One that waits for its answers to leave would do so until the client reads.
        closing = threading.Thread(target=front.front.close)
        closing.start()
        with pytest.raises(Cut):
            read_whole(connection, stream)
        closing.join(LIMIT_S)


def read_whole(connection: Http2, stream: int) -> bytes:
    connection.read_on(stream)
    return connection.answer(stream)


def test_close_loses_small_answers_that_were_accepted() -> None:
    # Which of them are lost is a matter of luck, so luck gets its chances.
    assert any(delivered(count=32) < 32 for _ in range(20))


def delivered(count: int) -> int:
    """How many of ``count`` answers arrive that were accepted just before the end."""
    front = Front()
    with grpc.insecure_channel(front.address) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        calls = [infer.future(b"request", timeout=LIMIT_S) for _ in range(count)]
        for call in front.receive(count):
            assert front.front.respond(call, b"answer")
        front.front.close()
        return sum(each.exception() is None for each in calls)


def test_calls_are_taken_in_without_end_while_nobody_receives_them(front: Front) -> None:
    with Http2(front.address) as connection:
        # How much may be sent: gigabytes, which the server says when the connection begins.
        next(frame for frame in connection.frames() if frame.kind == WINDOW_UPDATE)
        # Far more than the sockets between them hold, so that it is sent means that it is taken.
        for _ in range(64):
            connection.call(message(bytes(LIMIT_BYTES)))
        front.receive(64)


def test_its_asyncio_module_cannot_be_imported_from_the_package() -> None:
    command = [sys.executable, "-c", "from pygrpc_native import aio"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert result.returncode == 1
    assert "RecursionError" in result.stderr
