"""What the protocol says of a ModelInferRequest, written again from its rules and not from the codec.

Sources: the KServe v2 protocol and its binary tensor extension, and how Triton's gRPC front end reads them. A message
may break several rules, and no rule comes first: a refusal is right if it is by one that is broken.
"""

import struct
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
    """What a request says. ``inputs``: name, datatype, shape and data; raw as it came, typed as it would be raw."""

    model: str
    version: str
    id: str
    inputs: list[tuple[str, str, tuple[int, ...], bytes | list[bytes]]]
    outputs: list[str]
    parameters: dict[str, Any]


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
    """Shared memory and classification are extensions that the server does not list."""
    keys = {key for tensor in message.inputs for key in tensor.parameters}
    keys |= {key for output in message.outputs for key in output.parameters}
    classifies = any("classification" in output.parameters for output in message.outputs)
    return {Unsupported} if "shared_memory_region" in keys or classifies else set()


def _data_refusals(message: pb.ModelInferRequest) -> set[type[ServingError]]:
    raw = len(message.raw_input_contents)
    wrong = any(len(tensor.shape) > _MOST_DIMENSIONS for tensor in message.inputs)
    if raw:
        wrong |= raw != len(message.inputs)
        wrong |= any(tensor.HasField("contents") for tensor in message.inputs)
    else:
        wrong |= any(not _is_typed_right(tensor) for tensor in message.inputs)
    return {InvalidRequest} if wrong else set()


def _is_typed_right(tensor: pb.ModelInferRequest.InferInputTensor) -> bool:
    """In the field of its datatype, and there only; no data at all is right for no elements."""
    filled = {field for field in _CONTENT_FIELDS if len(getattr(tensor.contents, field))}
    if tensor.datatype not in _TYPED:
        return False
    return filled == {_TYPED[tensor.datatype][0]} or (not filled and any(size == 0 for size in tensor.shape))


def _say(message: pb.ModelInferRequest) -> Said:
    data: list[bytes | list[bytes]] = list(message.raw_input_contents)
    data = data or [_typed_data(tensor) for tensor in message.inputs]
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
    )


def _typed_data(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes | list[bytes]:
    field, code = _TYPED[tensor.datatype]
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return list(values)
    if code in "BHIQ":
        values = [value & (256 ** struct.calcsize(code) - 1) for value in values]
    return struct.pack(f"<{len(values)}{code}", *values)
