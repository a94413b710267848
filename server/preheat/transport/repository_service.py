"""The RPCs of ``preheat.v1.ModelRepository``, our own service, which ``preheat repo`` is the client of."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from preheat.engine import Engine
from preheat.errors import ExecutionFailed, InternalError, InvalidRequest, ServingError
from preheat.messages import VersionReport
from preheat.protocol import repository_pb2 as pb
from preheat.repository.arrival import Arrival, PushedFile
from preheat.transport.parsing import parse
from preheat.transport.status import code_of, text_of

log = logging.getLogger(__name__)

REPOSITORY_SERVICE = pb.DESCRIPTOR.services_by_name["ModelRepository"].full_name
Result = TypeVar("Result")
# How many calls that only read and write files run at once.
_BRIEF_CALLS = 4


class RepositoryService:
    """The RPCs, on the event loop."""

    def __init__(self, engine: Engine, executor: ThreadPoolExecutor) -> None:
        """What loads models runs on threads of ``executor``; the rest does not, for loads may take all of them."""
        self._engine = engine
        self._executor = executor
        self._brief_executor = ThreadPoolExecutor(_BRIEF_CALLS, thread_name_prefix="repository service")
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
        return await _result("List", context, self._submit(self._brief_executor, partial(self._list, payload)))

    async def roll_back(self, payload: bytes, context: Any) -> Any:
        """Rollback."""
        return await _result("Rollback", context, self._submit(self._executor, partial(self._roll_back, payload)))

    async def push(self, payloads: AsyncIterator[bytes], context: Any) -> Any:
        """Push. What was received is removed, however the call ends, unless it is being placed by then."""
        push = _Push(self._engine)
        finishing: Future[pb.PushResponse] | None = None
        try:
            async for payload in payloads:
                await _result("Push", context, self._submit(self._brief_executor, partial(push.take, payload)))
            finishing = self._submit(self._executor, push.finish)
            return await _result("Push", context, finishing)
        finally:
            # A client that has left may have left a step running, or the last one waiting for its thread.
            if finishing is None or finishing.cancel():
                self._submit(self._brief_executor, push.abandon)

    def _list(self, payload: bytes) -> pb.ListResponse:
        parse(pb.ListRequest(), payload)
        return pb.ListResponse(versions=[_encode(report) for report in self._engine.reports()])

    def _roll_back(self, payload: bytes) -> pb.RollbackResponse:
        request = parse(pb.RollbackRequest(), payload)
        return pb.RollbackResponse(text=self._engine.rollback(request.model))

    def _submit(self, executor: ThreadPoolExecutor, call: Callable[[], Result]) -> Future[Result]:
        running = executor.submit(call)
        self._calls.add(running)
        running.add_done_callback(self._calls.discard)
        return running


class _Push:
    """One push, on any thread. ``_turn`` has its steps follow each other: a client may leave in the middle of one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._arrival: Arrival | None = None
        self._abandoned = False

    def take(self, payload: bytes) -> None:
        """The next message. Raises what Arrival does."""
        request = parse(pb.PushRequest(), payload)
        with self._turn:
            if self._abandoned:
                return
            if self._arrival is None:
                self._arrival = _begin(self._engine, request)
            else:
                _write(self._arrival, request)

    def finish(self) -> pb.PushResponse:
        """There are no more messages. Raises what :meth:`Engine.finish_push` does."""
        with self._turn:
            arrival = self._arrival or _begin(self._engine, pb.PushRequest())
            try:
                return pb.PushResponse(text=self._engine.finish_push(arrival))
            finally:
                arrival.abandon()

    def abandon(self) -> None:
        """There will be no more messages, and some are missing."""
        with self._turn:
            self._abandoned = True
            if self._arrival is not None:
                self._arrival.abandon()


async def _result(rpc: str, context: Any, running: Future[Result]) -> Result:
    """What ``running`` gives; what it raises is the status that the RPC ends with."""
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
