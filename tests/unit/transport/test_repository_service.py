"""Our own service over a real connection: what it answers, and that nothing of a push is left but what was placed."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.unit.builders import ECHO_CONFIG, PATIENCE_S, write_model
from tests.unit.transport.served_repository import Repository, Served, talk

from preheat.errors import LoadFailed, ModelNotFound, Unsupported
from preheat.protocol import repository_pb2 as pb

CONTENT = b"weights" * 1000


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    write_model(tmp_path)
    return Repository(tmp_path)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it happens on the disk
        await asyncio.sleep(0.01)


def begin(content: bytes = CONTENT, **more: Any) -> bytes:
    file = pb.PushRequest.File(path="model", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return pb.PushRequest(begin=pb.PushRequest.Begin(model="m", files=[file], **more)).SerializeToString()


def piece(content: bytes = CONTENT) -> bytes:
    return pb.PushRequest(piece=content).SerializeToString()


async def stream(*payloads: bytes, then: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """The payloads; and after them nothing, for as long as ``then`` is not set."""
    for payload in payloads:
        yield payload
    if then is not None:
        await then.wait()


def test_versions_are_listed_with_all_that_is_known(repository: Repository) -> None:
    async def scenario(served: Served) -> None:
        known, untried = pb.ListResponse.FromString(await served.call("List", b"")).versions
        assert (known.model, known.version, known.state, known.backend) == ("m", 3, "READY", "double")
        assert (known.load_seconds, known.warmup_seconds, known.memory_bytes) == (1.5, 0.5, 2**20)
        assert (known.requests, known.failures, known.note, known.buckets) == (7, 1, "a canary agreed", "batch 1,2")
        assert (untried.model, untried.version, untried.state) == ("other", 0, "")
        assert not any(map(untried.HasField, ("load_seconds", "warmup_seconds", "memory_bytes")))

    talk(repository, scenario)


def test_a_push_in_pieces_is_placed_whole(repository: Repository) -> None:
    async def scenario(served: Served) -> None:
        payloads = [begin(config=f"{ECHO_CONFIG}# new"), piece(CONTENT[:10]), piece(b""), piece(CONTENT[10:])]
        answer = pb.PushResponse.FromString(await served.call("Push", stream(*payloads)))
        assert answer.text == "m/2 is READY"

    talk(repository, scenario)
    assert (repository.folder / "m" / "2" / "model").read_bytes() == CONTENT
    assert (repository.folder / "m" / "config.pbtxt").read_text().endswith("# new")
    assert repository.names() == ["m"]


@pytest.mark.parametrize(
    ("payloads", "says"),
    [
        ([], "the first message must be 'begin'"),
        ([piece()], "the first message must be 'begin'"),
        ([b"\xff"], "no valid preheat.v1.PushRequest"),
        ([begin(), b"\xff"], "no valid preheat.v1.PushRequest"),
        ([begin(), begin()], "each must be a 'piece'"),
        ([begin(), piece(CONTENT[1:])], "6999 bytes of 7000 came"),
        ([begin(), piece(), piece(b"x")], "1 more bytes"),
        ([begin(), piece(CONTENT[::-1])], "another than the hash"),
        ([begin(b"").replace(hashlib.sha256().hexdigest().encode(), b"0" * 64)], "another than the hash"),
        ([begin(version=10**18), piece()], "version 1000000000000000000"),
    ],
)
def test_what_is_no_push_is_refused_and_leaves_nothing(
    repository: Repository, payloads: Sequence[bytes], says: str
) -> None:
    async def scenario(served: Served) -> None:
        code, text = await refusal(served.call("Push", stream(*payloads)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert says in text
        await until(lambda: repository.names() == ["m"])

    talk(repository, scenario)
    assert sorted(path.name for path in (repository.folder / "m").iterdir()) == ["1", "config.pbtxt"]


@pytest.mark.parametrize("rpc", ["List", "Rollback"])
def test_bytes_that_are_no_message_are_refused(repository: Repository, rpc: str) -> None:
    async def scenario(served: Served) -> None:
        code, text = await refusal(served.call(rpc, b"\xff"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"no valid preheat.v1.{rpc}Request" in text

    talk(repository, scenario)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ModelNotFound("no such model"), grpc.StatusCode.NOT_FOUND, "no such model"),
        (LoadFailed("it does not load"), grpc.StatusCode.INVALID_ARGUMENT, "it does not load"),
        (Unsupported("not allowed"), grpc.StatusCode.UNIMPLEMENTED, "not allowed"),
        (OSError(28, "No space left on device"), grpc.StatusCode.INTERNAL, "No space left on device"),
        (KeyError("a defect"), grpc.StatusCode.INTERNAL, "internal server error"),
    ],
)
def test_what_the_engine_raises_is_the_status(
    repository: Repository, error: Exception, code: grpc.StatusCode, text: str
) -> None:
    repository.refuses = error

    async def scenario(served: Served) -> None:
        for refused in (
            served.call("Rollback", pb.RollbackRequest(model="m").SerializeToString()),
            served.call("Push", stream(begin())),
        ):
            was, details = await refusal(refused)
            assert (was, text in details) == (code, True)

    talk(repository, scenario)


def test_a_client_that_leaves_while_it_sends_leaves_nothing(repository: Repository) -> None:
    async def scenario(served: Served) -> None:
        pushing = served.call("Push", stream(begin(), piece(CONTENT[:10]), then=asyncio.Event()))
        await until(lambda: len(repository.names()) == 2)
        pushing.cancel()
        await until(lambda: repository.names() == ["m"])

    talk(repository, scenario)


def test_a_client_that_leaves_as_it_begins_leaves_nothing(repository: Repository) -> None:
    repository.may["begin"].clear()

    async def scenario(served: Served) -> None:
        pushing = served.call("Push", stream(begin(), piece(), then=asyncio.Event()))
        await until(repository.begun["begin"].is_set)
        pushing.cancel()
        # As long as it takes for the server to know.
        await asyncio.sleep(0.2)
        repository.may["begin"].set()
        await until(repository.arrived.is_set)
        await until(lambda: repository.names() == ["m"])

    talk(repository, scenario)


def test_a_push_that_came_whole_is_placed_whole_though_its_client_has_left(repository: Repository) -> None:
    repository.may["finish"].clear()

    async def scenario(served: Served) -> None:
        pushing = served.call("Push", stream(begin(), piece()))
        await until(repository.begun["finish"].is_set)
        pushing.cancel()
        await asyncio.sleep(0.2)
        repository.may["finish"].set()
        await until(repository.finished.is_set)
        await until(lambda: repository.names() == ["m"])

    talk(repository, scenario)
    assert (repository.folder / "m" / "2" / "model").read_bytes() == CONTENT


def test_versions_are_listed_and_received_while_everything_loads(repository: Repository) -> None:
    repository.may["rollback"].clear()

    async def scenario(served: Served) -> None:
        request = pb.RollbackRequest(model="m").SerializeToString()
        loads = [asyncio.ensure_future(served.call("Rollback", request)) for _ in range(20)]
        await until(repository.begun["rollback"].is_set)
        # So that the process does not wait for them when it is to end.
        await until(lambda: served.transport.blocked)
        await asyncio.wait_for(served.call("List", b""), PATIENCE_S / 4)
        pushing = served.call("Push", stream(begin(), piece()))
        await until(lambda: len(repository.names()) == 2)
        # It waits for a thread to be placed on.
        await asyncio.sleep(0.2)
        pushing.cancel()
        await until(lambda: repository.names() == ["m"])
        repository.may["rollback"].set()
        await asyncio.gather(*loads)
        await until(lambda: not served.transport.blocked)

    try:
        talk(repository, scenario)
    finally:
        repository.may["rollback"].set()
