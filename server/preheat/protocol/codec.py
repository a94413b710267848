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
from preheat.messages import InferRequest, InferResponse, InputTensor, Kind, Parameter, Place
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.places import is_shared, places_of, sources_of
from preheat.protocol.records import Layout, cut, header
from preheat.protocol.typed_contents import decode_contents, no_data
from preheat.tensors import Array, Buffer, raw_size, to_buffer

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
# What a message begins with is its model's name, which these bytes tell from most others.
_TELLING_BYTES = 12

_NOTHING = memoryview(b"")


class _Known(NamedTuple):
    """What requests of one kind say, but for id and data. ``tensors``: name, datatype and shape of each input.

    ``sent`` are the positions of those whose data is in raw contents; the others have ``sources``.
    """

    kind: Kind
    model: str
    version: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    sent: tuple[int, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    sources: tuple[tuple[int, Place], ...]
    places: Mapping[str, Place]


class _Envelope(NamedTuple):
    """The bytes of an answer before its id, and those after it up to the raw contents."""

    head: bytes
    tail: bytes


# By the bytes that say it: a client's requests mostly differ in their data only, and its answers with them.
_known: dict[bytes, _Known] = {}
# By length and first bytes: the message of that length that was cut last.
_layouts: dict[tuple[int, bytes], tuple[Layout, _Known]] = {}
_envelopes: dict[tuple[object, ...], _Envelope] = {}


def decode_request(payload: bytes, *, deadline_s: float | None) -> InferRequest:
    """Decode a ModelInferRequest. Raises InvalidRequest, or Unsupported for an extension this server does not have."""
    like = (len(payload), payload[:_TELLING_BYTES])
    layout = _layouts.get(like)
    parts = None if layout is None else layout[0].cut(payload)
    if layout is not None and parts is not None:
        return _fill(layout[1], *parts, len(payload), deadline_s)
    found = cut(payload, only=_ID, contents=_RAW_INPUTS)
    if found is None:
        return _decode_message(_parse(payload), len(payload), deadline_s)
    # Before all else: if it is no text, the message is none.
    identity = _text(found.only)
    known = _known.get(found.rest)
    # Without raw contents it is of another kind, though it says the same: its data is typed, or it has none.
    if known is None or (known.sent and not found.contents):
        message = _parse(found.rest)
        if not found.contents and not all(is_shared(tensor) for tensor in message.inputs):
            message.id = identity
            return _decode_message(message, len(payload), deadline_s)
        known = _learn(message, found.rest)
    if len(found.contents) != len(known.sent):
        names = [known.tensors[position][0] for position in known.sent]
        raise _wrong_count(len(found.contents), names, known.model)
    if len(found.rest) <= _MOST_KNOWN_BYTES:
        _remember(_layouts, like, (Layout(payload, found.spans), known))
    return _fill(known, found.only, found.contents, len(payload), deadline_s)


def _fill(
    known: _Known, identity: bytes, contents: Sequence[memoryview], size: int, deadline_s: float | None
) -> InferRequest:
    """A request of a kind that is known."""
    if known.sources:
        each = iter(contents)
        contents = [next(each) if position in known.sent else _NOTHING for position in range(len(known.tensors))]
    return InferRequest(
        known.model,
        known.version,
        _text(identity),
        tuple([InputTensor(*tensor, data) for tensor, data in zip(known.tensors, contents, strict=True)]),
        known.outputs,
        known.parameters,
        deadline_s,
        size,
        known.kind,
        known.sources,
        known.places,
    )


def encode_response(response: InferResponse) -> bytes:
    """Encode a ModelInferResponse, copying what its arrays view. Raises InvalidRequest if gRPC could not carry it."""
    outputs = response.outputs
    size = sum([raw_size(output.array) for output in outputs if not output.placed])
    if size > MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
        raise InvalidRequest(f"Response has byte size {size} which exceeds gRPC's byte size limit {MAX_MESSAGE_BYTES}")
    # A dtype's letter stands for the datatype: to look at that, an enumeration's member, costs more than all else here.
    like = (
        response.model,
        response.version,
        tuple([(output.name, output.array.dtype.char, output.array.shape) for output in outputs]),
    )
    envelope = None if response.parameters else _envelopes.get(like)
    if envelope is None:
        envelope = _make_envelope(response)
        if not response.parameters:
            _remember(_envelopes, like, envelope)
    parts: list[bytes | memoryview] = [envelope.head]
    if response.id:
        identity = response.id.encode()
        parts += (header(_ID, len(identity)), identity)
    parts.append(envelope.tail)
    for output in outputs:
        raw = b"" if output.placed else to_buffer(output.array)
        parts += (header(_RAW_OUTPUTS, len(raw)), raw)
    return b"".join(parts)


def _make_envelope(response: InferResponse) -> _Envelope:
    tail = pb.ModelInferResponse()
    for name, value in response.parameters.items():
        _encode_parameter(tail.parameters[name], value)
    for output in response.outputs:
        tail.outputs.add(name=output.name, datatype=output.datatype.value, shape=output.array.shape)
    head = pb.ModelInferResponse(model_name=response.model, model_version=response.version)
    return _Envelope(head.SerializeToString(), tail.SerializeToString())


def _remember(known: dict[Any, Any], key: object, value: object) -> None:
    """Threads may do this at once, and lose what another has learned: no more than a little time."""
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = value


def _learn(message: pb.ModelInferRequest, rest: bytes) -> _Known:
    """What a request says whose data is in raw contents or shared memory; ``message`` is the ``rest`` without them."""
    _refuse_classification(message)
    _check_raw_inputs(message)
    sources = sources_of(message)
    shared = dict(sources)
    known = _Known(
        Kind(),
        message.model_name,
        message.model_version,
        tuple((tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs),
        tuple(position for position in range(len(message.inputs)) if position not in shared),
        tuple(output.name for output in message.outputs),
        MappingProxyType(_decode_parameters(message.parameters)),
        sources,
        MappingProxyType(places_of(message)),
    )
    if len(rest) <= _MOST_KNOWN_BYTES:
        _remember(_known, rest, known)
    return known


def _decode_message(message: pb.ModelInferRequest, size: int, deadline_s: float | None) -> InferRequest:
    """Decode what has no raw contents, or has them in a way that only protobuf can read. ``size`` in bytes."""
    _refuse_classification(message)
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
        payload_bytes=size + typed_bytes,
        sources=sources_of(message),
        places=places_of(message),
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
        if tensor.HasField("contents") and not is_shared(tensor):
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
    if is_shared(tensor) and tensor.HasField("contents"):
        raise InvalidRequest(
            f"unexpected 'content' provided when using shared memory for input tensor '{tensor.name}' "
            f"for model '{model}'"
        )


def _decode_inputs(message: pb.ModelInferRequest) -> tuple[InputTensor, ...]:
    raw = message.raw_input_contents
    if not raw:
        for tensor in message.inputs:
            _check_dimensions(tensor, message.model_name)
        return tuple(
            _with_data(tensor, b"" if is_shared(tensor) else decode_contents(tensor, message.model_name))
            for tensor in message.inputs
        )
    _check_raw_inputs(message)
    sent = [tensor.name for tensor in message.inputs if not is_shared(tensor)]
    if len(raw) != len(sent):
        raise _wrong_count(len(raw), sent, message.model_name)
    each = iter(raw)
    return tuple(_with_data(tensor, b"" if is_shared(tensor) else next(each)) for tensor in message.inputs)


def _with_data(tensor: pb.ModelInferRequest.InferInputTensor, data: Buffer | Array) -> InputTensor:
    return InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)


def _wrong_count(count: int, names: Sequence[str], model: str) -> InvalidRequest:
    if count < len(names):
        return no_data(names[count], model)
    return InvalidRequest(
        f"raw_input_contents has {count} entries for {len(names)} inputs that are not in shared memory "
        f"for model '{model}'"
    )


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


def _refuse_classification(message: pb.ModelInferRequest) -> None:
    for output in message.outputs:
        if "classification" in output.parameters:
            raise Unsupported(
                f"output '{output.name}': the classification extension is not supported; take the scores and rank them"
            )
