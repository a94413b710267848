"""grpc.health.v1: the readiness of the server, of the inference service, and of each model by its name."""

import asyncio
import contextlib
from typing import Any, ClassVar

from grpc_health.v1 import health, health_pb2

from preheat.engine import Engine
from preheat.transport.methods import SERVICE

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health.aio.HealthServicer):
    """Answers Check and Watch. Belongs to the event loop.

    Services are "" and the inference service for the server as a whole, and the models' names.
    """

    SERVICE: ClassVar[str] = health.SERVICE_NAME

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._services = {""}
        self._watches: set[asyncio.Future[None]] = set()

    async def refresh(self) -> None:
        """Take over the engine's readiness as it is now, and tell those who watch."""
        ready = {service: self._engine.ready() for service in ("", SERVICE)}
        for service, serving in {**ready, **self._engine.models_ready()}.items():
            self._services.add(service)
            await self.set(service, _SERVING if serving else _NOT_SERVING)

    def knows(self, service: str) -> bool:
        """Whether a service of that name has a status."""
        return service in self._services

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the service's name for it
        """Stream the status of a service whenever it changes."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        # Cancelled by end_watches, or with this call because its client has left: either way it ends well.
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        self._watches.discard(watch)

    def end_watches(self) -> None:
        """End all streams: they have been told the last there is to tell, and would hold up a stop."""
        for watch in self._watches:
            watch.cancel()
