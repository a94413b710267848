"""Inference requests and answers, to and from wire bytes. Pure; any thread.

Arrays of a decoded request are views of the message's own bytes, read-only where the payload was raw. Semantics follow
Triton's gRPC front end: raw contents are positional over the inputs, and answers are always raw.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from preheat.errors import InvalidRequest, Unsupported
from preheat.messages import InferRequest, InferResponse, InputTensor, Kind, Parameter
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.records import cut, header
from preheat.tensors import Array, raw_size, to_buffer

# A protobuf message, and so a gRPC message, cannot be larger.
MAX_MESSAGE_BYTES = 2**31 - 1

# As many as numpy, and any engine, can hold.
_MAX_DIMENSIONS = 32

# What is kept free for names, shapes and parameters beside the tensors of an answer.
_ENVELOPE_BYTES = 2**20

# The fields of raw contents in requests and answers, and that of the id in both.
_RAW_INPUTS = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUTS = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_ID = pb.ModelInferRequest.ID_FIELD_NUMBER
# How many kinds of requests and answers are remembered, and how long a request may be, without id and data, that is.
_MOST_KNOWN = 1024
_MOST_KNOWN_BYTES = 4096

# The typed field that carries each datatype. FP16 and BF16 have none: they must be raw.
_CONTENTS = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int8),
    "INT16": ("int_contents", np.int16),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint8),
    "UINT16": ("uint_contents", np.uint16),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}
_SHARED_MEMORY = "shared_memory_region"


class _Known(NamedTuple):
    """What requests of one kind say, but for id and data. ``tensors``: name, datatype and shape of each input."""

    kind: Kind
    model: str
    version: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]


class _Envelope(NamedTuple):
    """The bytes of an answer before its id, and those after it up to the raw contents."""

    head: bytes
    tail: bytes


# By the bytes that say it: a client's requests mostly differ in their data only, and its answers with them.
_known: dict[bytes, _Known] = {}
_envelopes: dict[tuple[object, ...], _Envelope] = {}


def decode_request(payload: bytes, *, deadline_s: float | None) -> InferRequest:
    """Decode a ModelInferRequest. Raises InvalidRequest, or Unsupported for an extension this server does not have."""
    found = cut(payload, only=_ID, contents=_RAW_INPUTS)
    if found is None or not found.contents:
        return _decode_message(payload, deadline_s)
    identity = _text(found.only) if found.only else ""
    known = _known.get(found.rest)
    if known is None:
        known = _learn(found.rest)
    contents = found.contents
    if len(contents) != len(known.tensors):
        raise _wrong_count(len(contents), [name for name, _, _ in known.tensors], known.model)
    return InferRequest(
        known.model,
        known.version,
        identity,
        tuple([InputTensor(*tensor, data) for tensor, data in zip(known.tensors, contents, strict=True)]),
        known.outputs,
        known.parameters,
        deadline_s,
        len(payload),
        known.kind,
    )


def encode_response(response: InferResponse) -> bytes:
    """Encode a ModelInferResponse, copying what its arrays view. Raises InvalidRequest if gRPC could not carry it."""
    size = sum([raw_size(output.array) for output in response.outputs])
    if size > MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
        raise InvalidRequest(f"Response has byte size {size} which exceeds gRPC's byte size limit {MAX_MESSAGE_BYTES}")
    shapes = tuple([(output.name, output.datatype.value, output.array.shape) for output in response.outputs])
    envelope = _envelope(response.model, response.version, shapes, response.parameters)
    parts: list[bytes | memoryview] = [envelope.head]
    if response.id:
        identity = response.id.encode()
        parts += (header(_ID, len(identity)), identity)
    parts.append(envelope.tail)
    for output in response.outputs:
        raw = to_buffer(output.array)
        parts += (header(_RAW_OUTPUTS, len(raw)), raw)
    return b"".join(parts)


def _envelope(
    model: str, version: str, shapes: tuple[tuple[str, str, tuple[int, ...]], ...], parameters: Mapping[str, Parameter]
) -> _Envelope:
    key = (model, version, shapes)
    envelope = None if parameters else _envelopes.get(key)
    if envelope is None:
        tail = pb.ModelInferResponse()
        for name, value in parameters.items():
            _encode_parameter(tail.parameters[name], value)
        for name, datatype, shape in shapes:
            tail.outputs.add(name=name, datatype=datatype, shape=shape)
        head = pb.ModelInferResponse(model_name=model, model_version=version)
        envelope = _Envelope(head.SerializeToString(), tail.SerializeToString())
        if not parameters:
            _remember(_envelopes, key, envelope)
    return envelope


def _remember(known: dict[Any, Any], key: object, value: object) -> None:
    """Threads may do this at once, and lose what another has learned: no more than a little time."""
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = value


def _learn(rest: bytes) -> _Known:
    """What a request with raw contents says, from what is left without them."""
    message = _parse(rest)
    _refuse_output_extensions(message)
    _check_raw_inputs(message)
    known = _Known(
        Kind(),
        message.model_name,
        message.model_version,
        tuple((tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs),
        tuple(output.name for output in message.outputs),
        MappingProxyType(_decode_parameters(message.parameters)),
    )
    if len(rest) <= _MOST_KNOWN_BYTES:
        _remember(_known, rest, known)
    return known


def _decode_message(payload: bytes, deadline_s: float | None) -> InferRequest:
    """Decode what has no raw contents, or has them in a way that only protobuf can read."""
    message = _parse(payload)
    _refuse_output_extensions(message)
    inputs = _decode_inputs(message)
    typed_bytes = sum(tensor.data.nbytes for tensor in inputs if isinstance(tensor.data, np.ndarray))
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        inputs=inputs,
        requested_outputs=tuple(output.name for output in message.outputs),
        parameters=_decode_parameters(message.parameters),
        deadline_s=deadline_s,
        payload_bytes=len(payload) + typed_bytes,
    )


def _parse(payload: bytes) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(payload)
    except DecodeError as exc:
        raise _no_request() from exc
    return message


def _text(encoded: bytes) -> str:
    try:
        return encoded.decode()
    except UnicodeDecodeError as exc:
        raise _no_request() from exc


def _no_request() -> InvalidRequest:
    return InvalidRequest("the message is no valid inference.ModelInferRequest")


def _check_raw_inputs(message: pb.ModelInferRequest) -> None:
    """Hold the inputs against what they may be where their data is raw."""
    for tensor in message.inputs:
        _check_dimensions(tensor, message.model_name)
        if tensor.HasField("contents"):
            raise InvalidRequest(
                "contents field must not be specified when using raw_input_contents for "
                f"'{tensor.name}' for model '{message.model_name}'"
            )


def _check_dimensions(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> None:
    if len(tensor.shape) > _MAX_DIMENSIONS:
        raise InvalidRequest(
            f"input '{tensor.name}' for model '{model}' has {len(tensor.shape)} dimensions; "
            f"at most {_MAX_DIMENSIONS} are possible"
        )
    if _SHARED_MEMORY in tensor.parameters:
        raise _no_shared_memory(f"input '{tensor.name}'")


def _decode_inputs(message: pb.ModelInferRequest) -> tuple[InputTensor, ...]:
    raw = message.raw_input_contents
    if not raw:
        for tensor in message.inputs:
            _check_dimensions(tensor, message.model_name)
        return tuple(_decode_typed(tensor, message.model_name) for tensor in message.inputs)
    _check_raw_inputs(message)
    if len(raw) != len(message.inputs):
        raise _wrong_count(len(raw), [tensor.name for tensor in message.inputs], message.model_name)
    return tuple(
        InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)
        for tensor, data in zip(message.inputs, raw, strict=True)
    )


def _wrong_count(count: int, names: Sequence[str], model: str) -> InvalidRequest:
    if count < len(names):
        return _no_data(names[count], model)
    return InvalidRequest(f"raw_input_contents has {count} entries for {len(names)} inputs for model '{model}'")


def _decode_typed(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> InputTensor:
    """An input whose data is in typed contents, as a flat array."""
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if not filled and 0 not in tensor.shape:
        raise _no_data(tensor.name, model)
    if tensor.datatype not in _CONTENTS:
        allowed = "raw_input_contents" if tensor.datatype in ("FP16", "BF16") else f"one of {', '.join(_CONTENTS)}"
        raise InvalidRequest(
            f"input '{tensor.name}' for model '{model}' of datatype '{tensor.datatype}' has no typed contents; "
            f"use {allowed}"
        )
    field, dtype = _CONTENTS[tensor.datatype]
    for other in filled:
        if other != field:
            raise InvalidRequest(
                f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}' in {other}: "
                f"datatype '{tensor.datatype}' goes into {field}"
            )
    return InputTensor(
        tensor.name, tensor.datatype, tuple(tensor.shape), _flat_array(getattr(tensor.contents, field), dtype)
    )


def _flat_array(values: Sequence[object], dtype: type[np.generic]) -> Array:
    if dtype is np.object_:
        array = np.empty(len(values), np.object_)
        array[:] = list(values)
        return array
    if issubclass(dtype, np.integer):
        # Small integers ride in 32-bit fields; what does not fit is cut to the low bits, as Triton does.
        wide = np.uint64 if issubclass(dtype, np.unsignedinteger) else np.int64
        return np.fromiter(values, wide, len(values)).astype(dtype)
    return np.fromiter(values, dtype, len(values))


def _decode_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    decoded: dict[str, Parameter] = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"request parameter '{key}' has no value")
        decoded[key] = getattr(parameter, choice)
    return decoded


def _encode_parameter(parameter: pb.InferParameter, value: Parameter) -> None:
    # bool first: it is an int, too.
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def _refuse_output_extensions(message: pb.ModelInferRequest) -> None:
    for output in message.outputs:
        if _SHARED_MEMORY in output.parameters:
            raise _no_shared_memory(f"output '{output.name}'")
        if "classification" in output.parameters:
            raise Unsupported(
                f"output '{output.name}': the classification extension is not supported; take the scores and rank them"
            )


def _no_shared_memory(subject: str) -> Unsupported:
    return Unsupported(f"{subject}: shared memory is not supported; send and receive tensors in the message")


def _no_data(tensor: str, model: str) -> InvalidRequest:
    return InvalidRequest(f"unable to find data for input tensor '{tensor}' for model '{model}' in request.")
