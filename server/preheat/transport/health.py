"""grpc.health.v1: the readiness of the server, of the inference service, and of each model by its name."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

from grpc_health.v1 import health_pb2

from preheat.engine import Engine
from preheat.transport.methods import SERVICE

# A value of the enumeration HealthCheckResponse.ServingStatus.
Status: TypeAlias = int


class Health:
    """What Check and Watch answer. Belongs to the event loop.

    Services are "" and the inference service for the server as a whole, and the models' names. The library's own
    servicer is not used: of two watches of one service, it forgets the second when the first ends.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._statuses: dict[str, Status] = {"": health_pb2.HealthCheckResponse.NOT_SERVING}
        self._ending = False
        # Set, and replaced, when something changes: whoever watches waits for the one it has seen.
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Take over the engine's readiness as it is now, and tell those who watch."""
        ready = {service: self._engine.ready() for service in ("", SERVICE)}
        response = health_pb2.HealthCheckResponse
        # Anew: a model that is in no repository any more is no service.
        self._statuses = {
            service: response.SERVING if serving else response.NOT_SERVING
            for service, serving in {**ready, **self._engine.models_ready()}.items()
        }
        self._tell()

    def status(self, service: str) -> Status | None:
        """The status of ``service``; None if there is no such service."""
        return self._statuses.get(service)

    async def watch(self, service: str) -> AsyncIterator[Status]:
        """The status of ``service`` now and whenever it changes, SERVICE_UNKNOWN until there is one."""
        told: Status | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                yield status
                told = status
            elif self._ending:
                return
            else:
                await changed.wait()

    def end_watches(self) -> None:
        """End all streams, each after the last that there is to tell: they would hold up a stop."""
        self._ending = True
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
