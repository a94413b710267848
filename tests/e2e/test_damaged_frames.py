"""Damage around the messages, in gRPC's framing and in HTTP/2's: the connection it comes on may suffer, nobody else."""

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest
from tests.e2e.damaged_messages import MODELS, Messages, fault_of
from tests.e2e.http2 import DATA, Frame, Http2, bytes_of_a_call, message, reply_to
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import ServerProcess, write_model
from tests.e2e.transports import GRPCIO, NATIVE, TRANSPORTS, installed, messages
from tests.e2e.wire import Wire

pytestmark = pytest.mark.transports

# More for a search: DAMAGED_CALLS=100000 pytest tests/e2e/test_damaged_frames.py -s --timeout 3600
CALLS = int(os.environ.get("DAMAGED_CALLS", "1000")) // 10
CONNECTIONS = 8
PREFIX_BYTES = 5


@dataclass(frozen=True, slots=True)
class Framed:
    """A call's body. ``read``: the message that it begins with, for whoever finds one there; None if nobody may.

    ``whole``: it has as much as it announces.
    """

    body: bytes
    read: bytes | None
    headers: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True


Framing: TypeAlias = Callable[[Random, bytes], Framed]
Damage: TypeAlias = Callable[[Random, bytearray], None]


def cut_in_the_prefix(dice: Random, request: bytes) -> Framed:
    return Framed(message(request)[: dice.randrange(PREFIX_BYTES)], None, whole=False)


def cut_in_the_message(dice: Random, request: bytes) -> Framed:
    length = dice.randrange(PREFIX_BYTES, PREFIX_BYTES + len(request))
    return Framed(message(request)[:length], None, whole=False)


def announced_longer(dice: Random, request: bytes) -> Framed:
    # Not by gigabytes: see tests/e2e/test_native_holes.py.
    length = len(request) + dice.choice((1, 2, 255, 2**16, 2**20))
    return Framed(b"\0" + length.to_bytes(4) + request, None, whole=False)


def announced_shorter(dice: Random, request: bytes) -> Framed:
    length = dice.randrange(len(request))
    return Framed(b"\0" + length.to_bytes(4) + request, request[:length])


def twice(_: Random, request: bytes) -> Framed:
    return Framed(2 * message(request), request)


def flagged(dice: Random, request: bytes) -> Framed:
    """As compressed, where nobody said how, or as nothing that there is."""
    return Framed(dice.choice((b"\1", dice.randbytes(1))) + message(request)[1:], request)


def not_compressed(dice: Random, request: bytes) -> Framed:
    encoding = dice.choice(("gzip", "deflate", "zip", "identity", ""))
    return Framed(message(request, compressed=True), request, {"grpc-encoding": encoding})


def damaged_gzip(dice: Random, request: bytes) -> Framed:
    damaged = bytearray(gzip.compress(request))
    flip(dice, damaged)
    compressed = bytes(damaged[: dice.choice((len(damaged), dice.randrange(len(damaged))))])
    return Framed(message(compressed, compressed=True), inflated(compressed), {"grpc-encoding": "gzip"})


def inflated(compressed: bytes) -> bytes | None:
    try:
        return gzip.decompress(compressed)
    except (EOFError, OSError, zlib.error):
        return None


FRAMINGS: tuple[Framing, ...] = (
    cut_in_the_prefix, cut_in_the_message, announced_longer, announced_shorter, twice, flagged, not_compressed,
    damaged_gzip,
)  # fmt: skip


def flip(dice: Random, said: bytearray) -> None:
    said[dice.randrange(len(said))] ^= 1 << dice.randrange(8)


def overwrite(dice: Random, said: bytearray) -> None:
    said[dice.randrange(len(said))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))


def leave_out(dice: Random, said: bytearray) -> None:
    start = dice.randrange(len(said))
    # Never all of it, for there may be more to come.
    del said[start : start + min(dice.randint(1, 24), len(said) - 1)]


def insert_garbage(dice: Random, said: bytearray) -> None:
    start = dice.randrange(len(said))
    said[start:start] = dice.randbytes(dice.randint(1, 64))


def insert_a_frame(dice: Random, said: bytearray) -> None:
    said[len(said) :] = a_frame(dice)


DAMAGES: tuple[Damage, ...] = (flip, overwrite, leave_out, insert_garbage, insert_a_frame)


def a_frame(dice: Random) -> bytes:
    """A frame of HTTP/2 that is well formed, and makes no sense."""
    payload = dice.randbytes(dice.choice((0, 4, 5, 8, 60)))
    return Frame(dice.randrange(12), dice.randrange(256), dice.choice((0, 1, 2, 3, 2**31 - 1)), payload).encoded


def damaged_connection(dice: Random, request: bytes) -> bytes:
    """What a client says for one call, damaged in all but the message, so that any answer has to be the right one."""
    body = message(request)
    said = bytearray(bytes_of_a_call(body)[: -len(body)])
    for _ in range(dice.choice((1, 1, 2, 4))):
        dice.choice(DAMAGES)(dice, said)
    return bytes(said) + body + dice.choice((b"", a_frame(dice), dice.randbytes(100)))


def has_path_of_text(said: bytes) -> bool:
    """Whether the path is text, or is none. If it is not, grpc.aio serves nobody any more: see the last test."""
    _, name, value = said.partition(b":path")
    try:
        return not name or bool(value[1 : 1 + value[0]].decode())
    except UnicodeDecodeError:
        return False


class Others:
    """Those who ask meanwhile, on a connection that nothing is wrong with. Any thread."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def ask(self, number: int) -> None:
        """One question, and its answer."""
        request = Messages(number).good().message
        wrong = fault_of(request, self._wire.call("ModelInfer", request))
        assert wrong is None, f"the good request after number {number}: {wrong}: {request!r}"


@contextmanager
def serving(folder: Path, transport: str, *, quietly: bool = True) -> Iterator[ServerProcess]:
    """A server that must come through whatever it is told, and end in order. ``quietly``: it logs no traceback."""
    for name, config in MODELS.items():
        write_model(folder, name, config)
    with ServerProcess(folder, options=("--transport", installed(transport))) as server:
        yield server
        scrape_until(server, lambda found: found.total("nv_inference_pending_request_count") == 0)
        assert server.terminate() == 0
        assert "Traceback" not in server.log or not quietly
        assert not re.search("(ERROR|WARNING) +preheat", server.log)


def for_each_number(server: ServerProcess, end_of: Callable[[int], str]) -> Counter[str]:
    """How it ends by ``end_of``, many at a time, with others asking in between."""
    with Wire(server.grpc_address) as wire, ThreadPoolExecutor(CONNECTIONS) as pool:
        others = Others(wire)

        def end_and_ask(number: int) -> str:
            end = end_of(number)
            others.ask(number)
            return end

        return Counter(pool.map(end_and_ask, range(CALLS)))


def fault_of_frames(read: bytes | None, sent: bytes) -> str | None:
    """What is wrong with what came for a call that has ``read`` to be understood in it."""
    found = messages(sent)
    if not found:
        return None
    if read is None:
        return "answered though there is no message"
    return "answered twice" if len(found) > 1 else fault_of(read, found[0][1])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_framed_wrongly_ends_its_own_call_and_the_next_on_its_connection_is_answered(
    tmp_path: Path, transport: str
) -> None:
    with serving(tmp_path, transport) as server:

        def end_of(number: int) -> str:
            dice, (request, following) = Random(number), two_requests(number)  # noqa: S311 - the same each time
            framed = FRAMINGS[number % len(FRAMINGS)](dice, request)
            with Http2(server.grpc_address) as connection:
                stream = connection.call(framed.body, headers=framed.headers)
                next_stream = connection.call(message(following))
                # grpc.aio ends no call that has no message, before its deadline or its connection does.
                awaited = (stream, next_stream) if framed.whole or transport == NATIVE else (next_stream,)
                sent = connection.answers(awaited)
            answer = sent.get(stream, b"")
            wrong = fault_of_frames(framed.read, answer) or fault_of_frames(following, sent[next_stream])
            assert wrong is None, f"number {number}: {wrong}: {framed}"
            assert sent[next_stream], f"number {number}: the next call is not answered: {framed}"
            return f"{FRAMINGS[number % len(FRAMINGS)].__name__}: {'answered' if answer else 'refused'}"

        ends = for_each_number(server, end_of)
        print(f"{transport}: {dict(sorted(ends.items()))}")  # noqa: T201 - shown with -s, for a search


def two_requests(number: int) -> tuple[bytes, bytes]:
    some = Messages(number)
    return some.good().message, some.good().message


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_connection_that_speaks_broken_http2_harms_nobody_else(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gRPC's core writes to the log what it was sent, which need not be text.
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    # Of headers that are not UTF-8, grpc.aio logs a traceback for each.
    with serving(tmp_path, transport, quietly=transport == NATIVE) as server:

        def end_of(number: int) -> str:
            dice, (request, _) = Random(number), two_requests(number)  # noqa: S311 - the same each time
            said = damaged_connection(dice, request)
            while transport == GRPCIO and not has_path_of_text(said):
                said = damaged_connection(dice, request)
            sent = reply_to(server.grpc_address, said)
            data = b"".join(frame.payload for frame in sent if frame.kind == DATA)
            assert (wrong := fault_of_frames(request, data)) is None, f"number {number}: {wrong}: {said!r}"
            return "answered" if data else "refused" if sent else "cut"

        ends = for_each_number(server, end_of)
        print(f"{transport}: {dict(sorted(ends.items()))}")  # noqa: T201 - shown with -s, for a search


# Of grpcio, versions from 1.84 on end the server for everybody then, up to 1.85.3 at least: hence their bound.
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_path_that_is_not_utf8_is_refused_and_others_are_answered(tmp_path: Path, transport: str) -> None:
    request, following = two_requests(0)
    said = bytes_of_a_call(message(request)).replace(b"ModelInfer", b"\xffodelInfer")
    with serving(tmp_path, transport, quietly=transport == NATIVE) as server:
        with Wire(server.grpc_address) as wire:
            assert fault_of(following, wire.call("ModelInfer", following)) is None
        reply_to(server.grpc_address, said)
        with Wire(server.grpc_address) as wire:
            assert fault_of(following, wire.call("ModelInfer", following)) is None
