"""The protocol below tritonclient, which would refuse to send most of what a server must be able to refuse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from tests.e2e.server_process import LIMIT_S
from tritonclient.grpc import service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

Parameters = Mapping[str, bool | int | float | str]


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

    @property
    def channel(self) -> grpc.Channel:
        """The channel, for stubs of other services."""
        return self._channel

    def call(self, rpc: str, payload: bytes) -> bytes:
        """The answer of an RPC; raises grpc.RpcError."""
        method = f"/{SERVICE.full_name}/{rpc}"
        if any(known.name == rpc and known.client_streaming for known in SERVICE.methods):
            stream = self._channel.stream_stream(method)
            answers: list[bytes] = list(stream(iter([payload]), timeout=LIMIT_S))  # type: ignore[arg-type]
            return answers[0]
        answer: bytes = self._channel.unary_unary(method)(payload, timeout=LIMIT_S)
        return answer

    def status(self, rpc: str, payload: bytes) -> Status:
        """How a call of an RPC ends."""
        try:
            self.call(rpc, payload)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return Status(error.code(), error.details() or "")
        return Status(grpc.StatusCode.OK, "")

    def infer(self, request: bytes) -> Any:
        """The ModelInferResponse to an encoded request; raises grpc.RpcError."""
        return pb.ModelInferResponse.FromString(self.call("ModelInfer", request))


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
