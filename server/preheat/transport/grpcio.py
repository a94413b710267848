"""The gRPC server on grpc.aio: complete and the default."""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, cast

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection

from preheat.engine import Engine
from preheat.errors import InternalError, ServingError, Unsupported
from preheat.models.handle import Handle
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import MAX_MESSAGE_BYTES
from preheat.transport.health import Health
from preheat.transport.listening import Listening, Tls
from preheat.transport.mailbox import Mailbox
from preheat.transport.methods import SERVICE, BlockingMethods, ControlMethods, infer
from preheat.transport.repository_service import REPOSITORY_SERVICE, RepositoryService
from preheat.transport.side_services import HEALTH_SERVICE, health_handler, reflection_handler
from preheat.transport.status import code_of, text_of

log = logging.getLogger(__name__)

# Quoted: the stubs make these generic, the library does not.
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
UnaryHandler: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]

# GRPC_COMPRESS_LEVEL_*: gRPC takes an algorithm that the client does, where the channel's own setting does not ask.
_COMPRESSION_LEVELS = {"none": 0, "low": 1, "medium": 2, "high": 3}
# As often as anyone may ask whether the server is there; more often, and gRPC ends the connection.
_LEAST_PING_INTERVAL_MS = 5_000
# How long no call may come for the server to count as left alone.
_QUIET_SECONDS = 0.1
# How many calls that take their time run at once; more wait for these.
_BLOCKING_CALLS = 8


def _is_news(record: logging.LogRecord) -> bool:
    """Whether what gRPC logs is worth a line: not an answer whose call was over, by its deadline, when it was sent."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


class GrpcioTransport:
    """Serves the engine on ``listening``. Made on the event loop it runs on, and belongs to it."""

    name = "grpcio"

    def __init__(self, engine: Engine, listening: Listening) -> None:
        self._engine = engine
        self._listening = listening
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(self._loop)
        self._waiting: set[Handle] = set()
        self._health = Health(engine)
        # Not the loop's own executor: ending the loop waits for that, and a load cannot be interrupted.
        self._blocking_executor = ThreadPoolExecutor(_BLOCKING_CALLS, thread_name_prefix="control")
        self._blocking_calls: set[Future[bytes | ServingError]] = set()
        # Unary calls that have begun so far, and how many of them have not ended.
        self._begun = 0
        self._running = 0
        # Once for the process, however often it is added.
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
        self._repository = RepositoryService(engine, self._blocking_executor)
        self._server = grpc.aio.server(options=_options(listening))
        services = (SERVICE, REPOSITORY_SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, self._handlers()),
                self._repository.handler,
                health_handler(self._health),
                reflection_handler(services),
            )
        )

    async def start(self, socket: Path | None = None) -> int:
        """Bind and serve; the port bound (a free one for port 0).

        ``socket``: a Unix socket to listen on instead of the address; it is made, in a folder that is there. Raises
        OSError if the address cannot be had, or the certificates cannot be used.
        """
        self._health.refresh()
        address = self._listening.address if socket is None else f"unix:{socket}"
        tls = self._listening.tls if socket is None else None
        try:
            if tls is None:
                port: int = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError as exc:
            raise OSError(f"cannot listen on {address}: is the port taken? choose another with --grpc-port") from exc
        await self._server.start()
        return port

    @property
    def blocked(self) -> bool:
        """Whether a call that takes its time, say a load, still runs on its thread."""
        return self._repository.blocked or any(call.running() for call in tuple(self._blocking_calls))

    def refresh_health(self) -> None:
        """Tell health checks what the engine's readiness is now."""
        self._health.refresh()

    async def stop(self, grace_s: float) -> None:
        """Answer until a moment in which no call runs or comes, at most for ``grace_s``; then cut what is left.

        When gRPC stops, it ends calls that it has read but not handed over, and their callers learn no more than
        CANCELLED. What is still being sent then has the rest of ``grace_s``.
        """
        self._health.end_watches()
        deadline_s = time.monotonic() + grace_s
        begun = -1
        while (self._running or begun != self._begun) and time.monotonic() < deadline_s:
            begun = self._begun
            await asyncio.sleep(_QUIET_SECONDS)
        await self._server.stop(max(deadline_s - time.monotonic(), _QUIET_SECONDS))

    def _handlers(self) -> dict[str, Handler]:
        """A handler for every RPC of the service: what is not built answers UNIMPLEMENTED and says so."""
        unary: dict[str, UnaryHandler] = {"ModelInfer": self._model_infer}
        unary |= {name: _direct(name, method) for name, method in ControlMethods(self._engine).table().items()}
        unary |= {name: self._blocking(name, method) for name, method in BlockingMethods(self._engine).table().items()}
        handlers: dict[str, Handler] = {}
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            handle = unary.get(method.name) or _unimplemented(method.name)
            if method.client_streaming:
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(handle)
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._counted(handle))
        return handlers

    def _blocking(self, rpc: str, method: Callable[[bytes], bytes]) -> UnaryHandler:
        """A handler for an RPC that takes its time: on a thread, so that nothing else waits for it."""

        async def handle(payload: bytes, context: Context) -> bytes:
            call = self._blocking_executor.submit(_call, rpc, method, payload)
            self._blocking_calls.add(call)
            call.add_done_callback(self._blocking_calls.discard)
            response = await asyncio.wrap_future(call)
            # Whoever gets the answer finds health to agree with it.
            self._health.refresh()
            return await _answer(rpc, response, context)

        return handle

    def _counted(self, handle: UnaryHandler) -> UnaryHandler:
        """``handle``, seen by :meth:`stop`."""

        async def counted(payload: bytes, context: Context) -> bytes:
            self._begun += 1
            self._running += 1
            try:
                return await handle(payload, context)
            finally:
                self._running -= 1

        return counted

    def _wake_soon(self, handle: Handle) -> None:
        """Have a worker run what waits for ``handle``, once all calls are queued that have come by now."""
        if not self._waiting:
            self._loop.call_soon(self._wake)
        self._waiting.add(handle)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for handle in waiting:
            handle.wake()

    async def _model_infer(self, payload: bytes, context: Context) -> bytes:
        # None without a deadline, which the stubs leave out.
        remaining_s = cast("float | None", context.time_remaining())
        outcome: asyncio.Future[bytes | ServingError] = self._loop.create_future()
        ticket = infer(
            self._engine,
            payload,
            deadline_s=None if remaining_s is None else time.monotonic() + remaining_s,
            respond=lambda response: self._mailbox.post(lambda: _resolve(outcome, response)),
            wake=False,
        )
        if ticket is not None:
            self._wake_soon(ticket.handle)
        try:
            response = await outcome
        except asyncio.CancelledError:
            # The client has left or its deadline has passed.
            if ticket is not None:
                ticket.cancel()
            raise
        return await _answer("ModelInfer", response, context)


def _options(listening: Listening) -> list[tuple[str, int]]:
    options = {
        "grpc.max_receive_message_length": listening.max_message_bytes,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        # Otherwise a second server on the port would silently share its traffic.
        "grpc.so_reuseport": 0,
        "grpc.keepalive_time_ms": round(listening.keepalive_s * 1000),
        "grpc.keepalive_timeout_ms": round(listening.keepalive_timeout_s * 1000),
        # A connection that does not answer is ended by this one, which is a minute by itself.
        "grpc.http2.ping_timeout_ms": round(listening.keepalive_timeout_s * 1000),
        # Whoever waits for a slow answer sends nothing meanwhile, and is to be asked all the same.
        "grpc.keepalive_permit_without_calls": 1,
        # Clients may ask as often as the server does. gRPC's own limit is one question in five minutes.
        "grpc.http2.min_ping_interval_without_data_ms": _LEAST_PING_INTERVAL_MS,
    }
    if listening.compression != "none":
        options["grpc.default_compression_level"] = _COMPRESSION_LEVELS[listening.compression]
    if listening.max_concurrent_streams is not None:
        options["grpc.max_concurrent_streams"] = listening.max_concurrent_streams
    if listening.max_connection_age_s is not None:
        options["grpc.max_connection_age_ms"] = round(listening.max_connection_age_s * 1000)
    return list(options.items())


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Raises OSError, naming the file, for one that cannot be read or is not what it should be."""
    # gRPC itself would only say that it cannot listen.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authorities = None if tls.client_authorities is None else _read(tls.client_authorities)
    pair = (_read(tls.key), _read(tls.certificate))
    try:
        context.load_cert_chain(tls.certificate, tls.key, _refuse_password)
    except _Encrypted:
        raise OSError(f"{tls.key} is encrypted, and gRPC takes no password: decrypt it, with openssl pkey") from None
    except ssl.SSLError as exc:
        _check_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls.certificate)
        raise OSError(f"{tls.key} is no key, in PEM, or not that of {tls.certificate}: {exc.reason}") from exc
    if tls.client_authorities is not None:
        _check_certificates(context, tls.client_authorities)
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise OSError(f"cannot read {path}: {exc.strerror}") from exc


def _check_certificates(context: ssl.SSLContext, path: Path) -> None:
    """Raise OSError unless there are certificates in the file."""
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as exc:
        raise OSError(f"{path} has no certificates, in PEM: {exc.reason}") from exc


class _Encrypted(Exception):
    """A key needs a password."""


def _refuse_password() -> str:
    """Called for an encrypted key; otherwise OpenSSL would ask whoever sits at the terminal."""
    raise _Encrypted


async def _answer(rpc: str, response: bytes | ServingError, context: Context) -> bytes:
    """Return the response, or end the call with the error's status."""
    if isinstance(response, ServingError):
        try:
            await context.abort(code_of(response, rpc), text_of(response))
        except grpc.aio.InternalError as exc:
            # The call is over: its deadline has passed meanwhile.
            raise asyncio.CancelledError from exc
    return response


def _resolve(outcome: "asyncio.Future[bytes | ServingError]", response: bytes | ServingError) -> None:
    # A caller that left has cancelled its future; its answer goes nowhere.
    if not outcome.done():
        outcome.set_result(response)


def _direct(rpc: str, method: Callable[[bytes], bytes]) -> UnaryHandler:
    """A handler for an RPC that answers at once."""

    async def handle(payload: bytes, context: Context) -> bytes:
        return await _answer(rpc, _call(rpc, method, payload), context)

    return handle


def _call(rpc: str, method: Callable[[bytes], bytes], payload: bytes) -> bytes | ServingError:
    try:
        return method(payload)
    except ServingError as exc:
        return exc.as_answer()
    except Exception:
        log.exception("%s failed", rpc)
        return InternalError()


def _unimplemented(rpc: str) -> UnaryHandler:
    async def handle(_: bytes, context: Context) -> bytes:
        return await _answer(rpc, Unsupported(f"{rpc} is not supported by this version of the server"), context)

    return handle
