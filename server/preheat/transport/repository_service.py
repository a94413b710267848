"""The RPCs of ``preheat.v1.ModelRepository``, our own service, which ``preheat repo`` is the client of."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from preheat.engine import Engine
from preheat.errors import ExecutionFailed, InternalError, InvalidRequest, ServingError
from preheat.messages import VersionReport
from preheat.protocol import repository_pb2 as pb
from preheat.repository.arrival import Arrival, PushedFile
from preheat.transport.status import code_of, text_of

log = logging.getLogger(__name__)

REPOSITORY_SERVICE = pb.DESCRIPTOR.services_by_name["ModelRepository"].full_name
MessageT = TypeVar("MessageT", bound=Message)
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class RepositoryService:
    """The RPCs, on the event loop."""

    def __init__(self, engine: Engine, executor: ThreadPoolExecutor) -> None:
        """What takes its time runs on threads of ``executor``."""
        self._engine = engine
        self._executor = executor
        self._calls: set[Future[Any]] = set()

    @property
    def blocked(self) -> bool:
        """Whether a call is on its thread."""
        return any(call.running() for call in tuple(self._calls))

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The service, for a server."""
        methods: dict[str, Any] = {
            "List": _unary(self.list_versions, pb.ListResponse),
            "Push": grpc.stream_unary_rpc_method_handler(
                self.push, response_serializer=pb.PushResponse.SerializeToString
            ),
            "Rollback": _unary(self.roll_back, pb.RollbackResponse),
        }
        return grpc.method_handlers_generic_handler(REPOSITORY_SERVICE, methods)

    async def list_versions(self, payload: bytes, context: Any) -> Any:
        """List."""
        await self._run("List", context, _parse, pb.ListRequest(), payload)
        reports = await self._run("List", context, self._engine.reports)
        return pb.ListResponse(versions=[_encode(report) for report in reports])

    async def roll_back(self, payload: bytes, context: Any) -> Any:
        """Rollback."""
        request = await self._run("Rollback", context, _parse, pb.RollbackRequest(), payload)
        return pb.RollbackResponse(text=await self._run("Rollback", context, self._engine.rollback, request.model))

    async def push(self, payloads: AsyncIterator[bytes], context: Any) -> Any:
        """Push. What was received is removed, however the call ends."""
        arrival: Arrival | None = None
        try:
            async for payload in payloads:
                request = await self._run("Push", context, _parse, pb.PushRequest(), payload)
                if arrival is None:
                    arrival = await self._run("Push", context, _begin, self._engine, request)
                else:
                    await self._run("Push", context, _write, arrival, request)
            if arrival is None:
                arrival = await self._run("Push", context, _begin, self._engine, pb.PushRequest())
            return pb.PushResponse(text=await self._run("Push", context, self._engine.finish_push, arrival))
        finally:
            if arrival is not None:
                # On a thread too: there may be much to remove.
                self._executor.submit(arrival.abandon)

    async def _run(
        self,
        rpc: str,
        context: Any,
        call: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """``call`` on a thread; what it raises is the status that the RPC ends with."""
        running = self._executor.submit(partial(call, *args, **kwargs))
        self._calls.add(running)
        running.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(running)
        except ServingError as exc:
            error: ServingError = exc
        except OSError as exc:
            error = ExecutionFailed(f"{rpc}: {exc}")
        except Exception:
            log.exception("%s failed", rpc)
            error = InternalError()
        await context.abort(code_of(error, rpc), text_of(error))
        raise error


def _unary(method: Any, response: type[Message]) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, response_serializer=response.SerializeToString)


def _begin(engine: Engine, request: pb.PushRequest) -> Arrival:
    if request.WhichOneof("content") != "begin":
        raise InvalidRequest("Push: the first message must be 'begin'")
    begin = request.begin
    files = [PushedFile(file.path, file.size, file.sha256) for file in begin.files]
    config = begin.config if begin.HasField("config") else None
    return engine.begin_push(begin.model, begin.version, files, config)


def _write(arrival: Arrival, request: pb.PushRequest) -> None:
    if request.WhichOneof("content") != "piece":
        raise InvalidRequest("Push: after the first message, each must be a 'piece'")
    arrival.write(request.piece)


def _encode(report: VersionReport) -> pb.ListResponse.Version:
    return pb.ListResponse.Version(
        model=report.model,
        version=report.version or 0,
        state=report.state,
        reason=report.reason,
        backend=report.backend,
        buckets=report.buckets,
        load_seconds=report.load_s,
        warmup_seconds=report.warmup_s,
        memory_bytes=report.memory_bytes,
        requests=report.requests,
        failures=report.failures,
        note=report.note,
    )


def _parse(message: MessageT, payload: bytes) -> MessageT:
    try:
        message.ParseFromString(payload)
    except DecodeError as exc:
        raise InvalidRequest(f"the message is no valid {message.DESCRIPTOR.full_name}") from exc
    return message
