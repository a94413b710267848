"""Requests that arrive on a schedule, whatever becomes of the answers, from a process of its own.

What else a benchmark does meanwhile, such as copying files, would hold up whoever measures in the same process.
"""

import asyncio
import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

import grpc
import grpc.aio
from benchmarks.arrivals import Answer, Stream, arrivals
from benchmarks.inputs import INFER
from tritonclient.grpc import service_pb2 as pb

_CALLERS = 4
_NEVER_S = 600.0
_END_S = 60.0


@dataclass(frozen=True, slots=True)
class _Saturate:
    requests: Sequence[bytes]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Ask:
    streams: Sequence[Stream]
    even: bool
    seed: int


class OpenLoop:
    """Asks a server, from ``__enter__`` to ``__exit__``. ``take`` gets each answer, on a thread that is only for that.

    First :meth:`saturation`, then :meth:`start` and :meth:`stop`, each once.
    """

    def __init__(self, address: str, take: Callable[[Answer], None]) -> None:
        self._address = address
        self._take = take

    def __enter__(self) -> Self:
        # Not forked: what gRPC has of threads here would be missing there.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._address), name="open loop", daemon=True)
        self._process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, name="open loop's answers", daemon=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def saturation(self, requests: Sequence[bytes], seconds: float) -> float:
        """Requests a second of a few callers that wait for their answers."""
        self._connection.send(_Saturate(requests, seconds))
        rate: float = self._connection.recv()
        return rate

    def start(self, streams: Sequence[Stream], *, even: bool, seed: int) -> None:
        """Begin to ask."""
        self._connection.send(_Ask(streams, even, seed))
        self._reader.start()

    def check(self) -> None:
        """Raise AssertionError if nobody asks any more."""
        assert self._reader.is_alive(), "the process that asks has ended"

    def stop(self) -> None:
        """Ask no more, and wait until all that was asked is answered and taken."""
        self.check()
        self._connection.send(None)
        self._reader.join(_END_S)
        assert not self._reader.is_alive(), f"what was asked is not answered after {_END_S:.0f} s"

    def _read(self) -> None:
        try:
            while (answer := self._connection.recv()) is not None:
                self._take(answer)
        except (EOFError, OSError):
            return  # it was ended, or check() will say so


def _work(connection: Connection, address: str) -> None:
    """What the process does, until the other end is closed."""
    # A pass of the collector would be measured as the server's.
    gc.disable()
    while True:
        try:
            work = connection.recv()
        except EOFError:
            return
        if isinstance(work, _Saturate):
            connection.send(asyncio.run(_saturate(address, work)))
        else:
            asyncio.run(_ask(address, work, connection))
            return


async def _saturate(address: str, work: _Saturate) -> float:
    count, end_s = 0, time.perf_counter() + work.seconds
    async with grpc.aio.insecure_channel(address) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)

        async def call(first: int) -> None:
            nonlocal count
            number = first
            while time.perf_counter() < end_s:
                await infer(work.requests[number % len(work.requests)], timeout=_NEVER_S)
                count, number = count + 1, number + 1

        await asyncio.gather(*(call(number) for number in range(_CALLERS)))
    return count / work.seconds


async def _ask(address: str, work: _Ask, connection: Connection) -> None:
    """Ask until the other end sends anything; answers go there, and at last None."""
    asked: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(address) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)

        async def ask(stream: int, number: int, due_s: float) -> None:
            requests = work.streams[stream].requests
            sent_s, encoded, failure = time.perf_counter(), b"", ""
            try:
                encoded = await infer(requests[number % len(requests)], timeout=_NEVER_S)
            except grpc.aio.AioRpcError as error:
                failure = f"{error.code().name}: {error.details()}"
            done_s = time.perf_counter()
            answer = pb.ModelInferResponse.FromString(encoded)
            version, output = answer.model_version, b"".join(answer.raw_output_contents)
            connection.send(Answer(stream, number % len(requests), due_s, sent_s, done_s, version, output, failure))

        began_s = time.perf_counter()
        for arrival in arrivals([each.rate for each in work.streams], even=work.even, seed=work.seed):
            due_s = began_s + arrival.due_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if connection.poll():
                break
            call = asyncio.create_task(ask(arrival.stream, arrival.number, due_s))
            asked.add(call)
            call.add_done_callback(asked.discard)
        await asyncio.gather(*asked)
    connection.send(None)
