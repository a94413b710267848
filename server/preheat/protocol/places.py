"""What requests say of shared memory: the parameters of its protocol extension."""

from collections.abc import Mapping

from preheat.errors import InvalidRequest
from preheat.messages import Place
from preheat.protocol import grpc_service_pb2 as pb

_SHARED_MEMORY = "shared_memory_region"


def is_shared(tensor: pb.ModelInferRequest.InferInputTensor) -> bool:
    """Whether the data of ``tensor`` lies in shared memory."""
    return _SHARED_MEMORY in tensor.parameters


def sources_of(message: pb.ModelInferRequest) -> tuple[tuple[int, Place], ...]:
    """Where the inputs are whose data lies in shared memory, by position. Raises InvalidRequest."""
    return tuple(
        (position, _place(f"input '{tensor.name}'", tensor.parameters))
        for position, tensor in enumerate(message.inputs)
        if is_shared(tensor)
    )


def places_of(message: pb.ModelInferRequest) -> dict[str, Place]:
    """Where outputs are to go that are wanted in shared memory, by name. Raises InvalidRequest."""
    return {
        output.name: _place(f"output '{output.name}'", output.parameters)
        for output in message.outputs
        if _SHARED_MEMORY in output.parameters
    }


def _place(subject: str, parameters: Mapping[str, pb.InferParameter]) -> Place:
    """Where a tensor is, by its parameters (protocol extension "shared memory")."""
    region = parameters[_SHARED_MEMORY]
    if region.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequest(f"{subject}: parameter '{_SHARED_MEMORY}' must be a string, the name of a region")
    return Place(
        region.string_param,
        _size(subject, parameters, "shared_memory_offset", default=0),
        _size(subject, parameters, "shared_memory_byte_size", default=None),
    )


def _size(subject: str, parameters: Mapping[str, pb.InferParameter], key: str, *, default: int | None) -> int:
    if key not in parameters:
        if default is None:
            raise InvalidRequest(f"{subject}: '{_SHARED_MEMORY}' needs '{key}' too")
        return default
    parameter = parameters[key]
    if parameter.WhichOneof("parameter_choice") != "int64_param" or parameter.int64_param < 0:
        raise InvalidRequest(f"{subject}: parameter '{key}' must be a whole number of bytes, as int64_param")
    return parameter.int64_param
