"""Our own service over a real connection, and behind it a repository without an engine, whose steps can be held."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from tests.unit.builders import PATIENCE_S

from preheat.messages import VersionReport
from preheat.repository.arrival import Arrival, PushedFile
from preheat.transport.grpcio import GrpcioTransport
from preheat.transport.listening import Listening
from preheat.transport.repository_service import REPOSITORY_SERVICE

REPORT = VersionReport("m", 3, "READY", "", "double", "batch 1,2", 1.5, 0.5, 2**20, 7, 1, "a canary agreed")


class Repository:
    """What the service asks of an engine, over a folder. Each step can be held, and says when it has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = {step: threading.Event() for step in ("begin", "finish", "rollback")}
        self.may = {step: threading.Event() for step in self.begun}
        for event in self.may.values():
            event.set()
        self.arrived = threading.Event()
        self.finished = threading.Event()
        self.refuses: Exception | None = None

    def models_ready(self) -> dict[str, bool]:
        return {}

    def ready(self) -> bool:
        return True

    def live(self) -> bool:
        return True

    def reports(self) -> list[VersionReport]:
        return [REPORT, VersionReport("other", None, "")]

    def rollback(self, model: str) -> str:
        self._pass("rollback")
        if self.refuses is not None:
            raise self.refuses
        return f"{model}/1 serves again"

    def begin_push(self, model: str, version: int, files: Sequence[PushedFile], config: str | None) -> Arrival:
        self._pass("begin")
        if self.refuses is not None:
            raise self.refuses
        try:
            return Arrival([self.folder], model, version, files, config)
        finally:
            self.arrived.set()

    def finish_push(self, arrival: Arrival) -> str:
        try:
            arrival.check()
            self._pass("finish")
            return f"{arrival.model}/{arrival.place()} is READY"
        finally:
            self.finished.set()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def _pass(self, step: str) -> None:
        self.begun[step].set()
        assert self.may[step].wait(PATIENCE_S)


@dataclass(frozen=True)
class Served:
    """A transport that serves a repository, and a connection to it."""

    transport: GrpcioTransport
    channel: grpc.aio.Channel
    address: str

    def call(self, rpc: str, request: Any) -> Any:
        """Begin an RPC, with a message, or with an iterator of some."""
        make: Any = self.channel.unary_unary if isinstance(request, bytes) else self.channel.stream_unary
        return make(f"/{REPOSITORY_SERVICE}/{rpc}")(request)


def talk(repository: Repository, scenario: Callable[[Served], Awaitable[None]]) -> None:
    """Run ``scenario`` beside a transport that serves ``repository``."""

    async def run() -> None:
        async with _serving(repository) as served:
            await asyncio.wait_for(scenario(served), PATIENCE_S)
        # gRPC's server needs its loop when it is freed.
        del served
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(run())


@asynccontextmanager
async def _serving(repository: Repository) -> AsyncIterator[Served]:
    # Any: it is no engine, but has what the service asks of one.
    engine: Any = repository
    transport = GrpcioTransport(engine, Listening(host="127.0.0.1", port=0))
    address = f"127.0.0.1:{await transport.start()}"
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            yield Served(transport, channel, address)
        finally:
            await transport.stop(PATIENCE_S)
