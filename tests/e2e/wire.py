"""The protocol below tritonclient, which would refuse to send most of what a server must be able to refuse."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, cast

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tests.e2e.server_process import LIMIT_S
from tritonclient.grpc import service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_HEALTH = "/grpc.health.v1.Health"

Parameters: TypeAlias = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input of a request. ``contents``: typed contents by their field's name."""

    name: str
    datatype: str
    shape: Sequence[int]
    contents: Mapping[str, Sequence[Any]] | None = None
    parameters: Parameters | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One requested output."""

    name: str
    parameters: Parameters | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    text: str


class Wire:
    """A channel to the server that sends any bytes to any RPC."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, rpc: str, payload: bytes) -> bytes:
        """The answer of an RPC; raises grpc.RpcError."""
        method = f"/{SERVICE.full_name}/{rpc}"
        if any(known.name == rpc and known.client_streaming for known in SERVICE.methods):
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(method)
            return next(iter(stream(iter([payload]), timeout=LIMIT_S)))
        return self._unary(method)(payload, timeout=LIMIT_S)

    def status(self, rpc: str, payload: bytes) -> Status:
        """How a call of an RPC ends."""
        try:
            self.call(rpc, payload)
        except grpc.RpcError as error:
            return status_of(error)
        return Status(grpc.StatusCode.OK, "")

    def infer(self, request: bytes) -> Any:
        """The ModelInferResponse to an encoded request; raises grpc.RpcError."""
        return pb.ModelInferResponse.FromString(self.call("ModelInfer", request))

    def health(self, service: str = "") -> int:
        """What the health service says of a service now; raises grpc.RpcError."""
        check = self._unary(f"{_HEALTH}/Check")
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        return health_pb2.HealthCheckResponse.FromString(check(request, timeout=LIMIT_S)).status

    def watch_health(self) -> Iterator[int]:
        """What the health service says of the server, now and with each change."""
        watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(f"{_HEALTH}/Watch")
        for answer in watch(health_pb2.HealthCheckRequest().SerializeToString(), timeout=LIMIT_S):
            yield health_pb2.HealthCheckResponse.FromString(answer).status

    def reflected_services(self) -> list[str]:
        """The services that server reflection lists."""
        answer = self._reflect(reflection_pb2.ServerReflectionRequest(list_services=""))
        return [service.name for service in answer.list_services_response.service]

    def reflected_file(self, symbol: str) -> bytes:
        """The file, as server reflection has it, that declares ``symbol``."""
        answer = self._reflect(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        return b"".join(answer.file_descriptor_response.file_descriptor_proto)

    def _reflect(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(method)
        answer = next(iter(stream(iter([request.SerializeToString()]), timeout=LIMIT_S)))
        return reflection_pb2.ServerReflectionResponse.FromString(answer)

    def _unary(self, method: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        return self._channel.unary_unary(method)


def status_of(error: grpc.RpcError) -> Status:
    """How the call that raised ``error`` ended."""
    # What a channel raises is both, which the library's types do not say.
    call = cast("grpc.Call", error)
    return Status(call.code(), call.details() or "")


def infer_request(
    model: str,
    inputs: Sequence[Tensor],
    raw: Sequence[bytes] = (),
    *,
    version: str = "",
    outputs: Sequence[Output] = (),
    parameters: Parameters | None = None,
) -> bytes:
    """An encoded ModelInferRequest that says just this, whether it makes sense or not."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=raw)
    _set_parameters(message.parameters, parameters)
    for tensor in inputs:
        added = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _set_parameters(added.parameters, tensor.parameters)
        for field, values in (tensor.contents or {}).items():
            getattr(added.contents, field).extend(values)
    for output in outputs:
        _set_parameters(message.outputs.add(name=output.name).parameters, output.parameters)
    encoded: bytes = message.SerializeToString()
    return encoded


def without_value(request: bytes, key: str) -> bytes:
    """``request`` with a parameter ``key`` that has no value."""
    message = pb.ModelInferRequest.FromString(request)
    message.parameters[key].SetInParent()
    encoded: bytes = message.SerializeToString()
    return encoded


def _set_parameters(field: Any, parameters: Parameters | None) -> None:
    for key, value in (parameters or {}).items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(field[key], kinds[type(value)], value)
