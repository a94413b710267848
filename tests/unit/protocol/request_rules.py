"""What the protocol says of a ModelInferRequest, written again from its rules and not from the codec.

Sources: the KServe v2 protocol and its binary tensor extension, and how Triton's gRPC front end reads them. A message
may break several rules, and no rule comes first: a refusal is right if it is by one that is broken.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from preheat.errors import InvalidRequest, ServingError, Unsupported
from preheat.protocol import grpc_service_pb2 as pb

# Where the values of a datatype go, and how one of them lies in a tensor. Small integers are cut to their low bits.
_TYPED: dict[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "B"),
    "INT16": ("int_contents", "H"),
    "INT32": ("int_contents", "I"),
    "INT64": ("int64_contents", "Q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BYTES": ("bytes_contents", ""),
}
_CONTENT_FIELDS = tuple(pb.InferTensorContents.DESCRIPTOR.fields_by_name)
_MOST_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Said:
    """What a request says. ``inputs``: name, datatype, shape and data; raw as it came, typed as it would be raw.

    ``sources`` by an input's position, ``places`` by an output's name: region, offset and size in shared memory.
    """

    model: str
    version: str
    id: str
    inputs: list[tuple[str, str, tuple[int, ...], bytes | list[bytes]]]
    outputs: list[str]
    parameters: dict[str, Any]
    sources: dict[str, tuple[str, int, int]]
    places: dict[str, tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a message may be refused; if there is no reason, what it says. ``parses``: it is one at all."""

    parses: bool
    refusals: set[type[ServingError]]
    said: Said | None


def judge(payload: bytes) -> Verdict:
    """What is to become of ``payload``."""
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(payload)
    except DecodeError:
        return Verdict(parses=False, refusals={InvalidRequest}, said=None)
    refusals = _extension_refusals(message) | _data_refusals(message)
    if any(each.WhichOneof("parameter_choice") is None for each in message.parameters.values()):
        refusals.add(InvalidRequest)
    return Verdict(parses=True, refusals=refusals, said=None if refusals else _say(message))


def _extension_refusals(message: pb.ModelInferRequest) -> set[type[ServingError]]:
    """Classification is an extension that the server does not list; places in shared memory may be no places."""
    refusals: set[type[ServingError]] = set()
    if any("classification" in output.parameters for output in message.outputs):
        refusals.add(Unsupported)
    given = [each.parameters for each in message.inputs] + [each.parameters for each in message.outputs]
    if not all(map(_is_placed_right, given)):
        refusals.add(InvalidRequest)
    return refusals


def _is_placed_right(parameters: Mapping[str, pb.InferParameter]) -> bool:
    """Not in shared memory, or by the name of a region, a size, and an offset unless that is 0."""
    if "shared_memory_region" not in parameters:
        return True
    numbers = [parameters[key] for key in ("shared_memory_byte_size", "shared_memory_offset") if key in parameters]
    return (
        parameters["shared_memory_region"].WhichOneof("parameter_choice") == "string_param"
        and "shared_memory_byte_size" in parameters
        and all(each.WhichOneof("parameter_choice") == "int64_param" and each.int64_param >= 0 for each in numbers)
    )


def _data_refusals(message: pb.ModelInferRequest) -> set[type[ServingError]]:
    raw = len(message.raw_input_contents)
    wrong = any(len(tensor.shape) > _MOST_DIMENSIONS for tensor in message.inputs)
    shared = [each for each in message.inputs if "shared_memory_region" in each.parameters]
    wrong |= any(tensor.HasField("contents") for tensor in shared)
    sent = [each for each in message.inputs if "shared_memory_region" not in each.parameters]
    if raw:
        wrong |= raw != len(sent)
        wrong |= any(tensor.HasField("contents") for tensor in sent)
    else:
        wrong |= any(not _is_typed_right(tensor) for tensor in sent)
    return {InvalidRequest} if wrong else set()


def _is_typed_right(tensor: pb.ModelInferRequest.InferInputTensor) -> bool:
    """In the field of its datatype, and there only; no data at all is right for no elements."""
    filled = {field for field in _CONTENT_FIELDS if len(getattr(tensor.contents, field))}
    if tensor.datatype not in _TYPED:
        return False
    return filled == {_TYPED[tensor.datatype][0]} or (not filled and any(size == 0 for size in tensor.shape))


def _say(message: pb.ModelInferRequest) -> Said:
    raw = iter(message.raw_input_contents)
    data: list[bytes | list[bytes]] = []
    for tensor in message.inputs:
        if "shared_memory_region" in tensor.parameters:
            data.append(b"")
        else:
            data.append(next(raw) if message.raw_input_contents else _typed_data(tensor))
    return Said(
        message.model_name,
        message.model_version,
        message.id,
        [
            (each.name, each.datatype, tuple(each.shape), datum)
            for each, datum in zip(message.inputs, data, strict=True)
        ],
        [output.name for output in message.outputs],
        {key: getattr(each, str(each.WhichOneof("parameter_choice"))) for key, each in message.parameters.items()},
        _places([(str(k), each.parameters) for k, each in enumerate(message.inputs)]),
        _places([(each.name, each.parameters) for each in message.outputs]),
    )


def _places(tensors: Sequence[tuple[str, Mapping[str, pb.InferParameter]]]) -> dict[str, tuple[str, int, int]]:
    return {
        name: (
            parameters["shared_memory_region"].string_param,
            parameters["shared_memory_offset"].int64_param if "shared_memory_offset" in parameters else 0,
            parameters["shared_memory_byte_size"].int64_param,
        )
        for name, parameters in tensors
        if "shared_memory_region" in parameters
    }


def _typed_data(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes | list[bytes]:
    field, code = _TYPED[tensor.datatype]
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return list(values)
    if code in "BHIQ":
        values = [value & (256 ** struct.calcsize(code) - 1) for value in values]
    return struct.pack(f"<{len(values)}{code}", *values)
