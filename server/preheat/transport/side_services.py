"""The services beside inference, health and reflection, registered so that a request is parsed here.

The libraries' own registration has gRPC parse it: bytes that are no message then end in UNKNOWN, and in a trace in the
log for each of them.
"""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from preheat.errors import InvalidRequest
from preheat.transport.health import Health
from preheat.transport.parsing import MessageT, parse
from preheat.transport.status import shorten, text_of

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def health_handler(health: Health) -> grpc.GenericRpcHandler:
    """grpc.health.v1, answered by ``health``."""

    async def check(payload: bytes, context: Any) -> Any:
        request = await _parse(health_pb2.HealthCheckRequest(), payload, context)
        status = health.status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, shorten(f"unknown service '{request.service}'"))
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(payload: bytes, context: Any) -> AsyncIterator[Any]:
        request = await _parse(health_pb2.HealthCheckRequest(), payload, context)
        async for status in health.watch(request.service):
            yield health_pb2.HealthCheckResponse(status=status)

    serializer = health_pb2.HealthCheckResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        HEALTH_SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=serializer),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=serializer),
        },
    )


def reflection_handler(services: tuple[str, ...]) -> grpc.GenericRpcHandler:
    """Server reflection of ``services``."""
    # Any: the stubs take its generator for a coroutine.
    servicer: Any = reflection.aio.ReflectionServicer(services)

    async def answer(payloads: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async def requests() -> AsyncIterator[Any]:
            async for payload in payloads:
                yield await _parse(reflection_pb2.ServerReflectionRequest(), payload, context)

        async for response in servicer.ServerReflectionInfo(requests(), context):
            yield response

    serializer = reflection_pb2.ServerReflectionResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME,
        {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(answer, response_serializer=serializer)},
    )


async def _parse(message: MessageT, payload: bytes, context: Any) -> MessageT:
    try:
        return parse(message, payload)
    except InvalidRequest as exc:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text_of(exc))
        raise
