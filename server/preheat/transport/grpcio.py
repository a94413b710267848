"""The gRPC server on grpc.aio: complete and the default."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from preheat.engine import Engine
from preheat.errors import InternalError, ServingError, Unsupported
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import MAX_MESSAGE_BYTES
from preheat.transport.mailbox import Mailbox
from preheat.transport.methods import SERVICE, ControlMethods, infer
from preheat.transport.status import code_of, text_of

log = logging.getLogger(__name__)

# Quoted: the stubs make these generic, the library does not.
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
UnaryHandler: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Otherwise a second server on the port would silently share its traffic.
    ("grpc.so_reuseport", 0),
)


class GrpcioTransport:
    """Serves the engine on ``host:port``. Belongs to the event loop it is started on."""

    def __init__(self, engine: Engine, *, host: str, port: int) -> None:
        self._engine = engine
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._health = health.aio.HealthServicer()

    async def start(self) -> int:
        """Bind and serve; the port bound (a free one for port 0). Raises OSError if the address cannot be had."""
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self.refresh_health()
        try:
            port: int = self._server.add_insecure_port(self._address)
        except RuntimeError as exc:
            raise OSError(f"cannot listen on {self._address}: {exc}") from exc
        await self._server.start()
        return port

    async def refresh_health(self) -> None:
        """Tell health checks what the engine's readiness is now."""
        ready = self._engine.ready()
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run get ``grace_s`` to hand over their answers, then are cut."""
        await self._server.stop(grace_s)

    def _handlers(self) -> dict[str, Handler]:
        """A handler for every RPC of the service: what is not built answers UNIMPLEMENTED and says so."""
        control = ControlMethods(self._engine).table()
        handlers: dict[str, Handler] = {}
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            if method.name == "ModelInfer":
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._model_infer)
            elif method.name in control:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(_unary(method.name, control[method.name]))
            elif method.client_streaming:
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(_unimplemented(method.name))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(_unimplemented(method.name))
        return handlers

    async def _model_infer(self, payload: bytes, context: Context) -> bytes:
        # None without a deadline, which the stubs leave out.
        remaining_s = cast("float | None", context.time_remaining())
        outcome: asyncio.Future[bytes | ServingError] = asyncio.get_running_loop().create_future()
        ticket = infer(
            self._engine,
            payload,
            deadline_s=None if remaining_s is None else time.monotonic() + remaining_s,
            respond=lambda response: self._mailbox.post(lambda: _resolve(outcome, response)),
        )
        try:
            response = await outcome
        except asyncio.CancelledError:
            # The client has left or its deadline has passed.
            if ticket is not None:
                ticket.cancel()
            raise
        if isinstance(response, ServingError):
            await context.abort(code_of(response), text_of(response))
        return response


def _resolve(outcome: "asyncio.Future[bytes | ServingError]", response: bytes | ServingError) -> None:
    # A caller that left has cancelled its future; its answer goes nowhere.
    if not outcome.done():
        outcome.set_result(response)


def _unary(name: str, method: Callable[[bytes], bytes]) -> UnaryHandler:
    """A handler for an RPC that answers at once."""

    async def handle(payload: bytes, context: Context) -> bytes:
        response = _call(name, method, payload)
        if isinstance(response, ServingError):
            await context.abort(code_of(response), text_of(response))
        return response

    return handle


def _call(name: str, method: Callable[[bytes], bytes], payload: bytes) -> bytes | ServingError:
    try:
        return method(payload)
    except ServingError as exc:
        return exc
    except Exception:
        log.exception("%s failed", name)
        return InternalError()


def _unimplemented(name: str) -> UnaryHandler:
    async def handle(_: bytes, context: Context) -> bytes:
        error = Unsupported(f"{name} is not built yet; this server answers ModelInfer, metadata, config and readiness")
        await context.abort(code_of(error), text_of(error))

    return handle
