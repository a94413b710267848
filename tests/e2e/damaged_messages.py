"""Requests that are damaged on their way, and what is due to them: protobuf, as clients have it, is the referee."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tests.e2e.server_process import echo_config
from tests.e2e.wire import Output, Tensor, infer_request
from tests.unit.protocol.damaged_requests import damaged_request
from tritonclient.grpc import service_pb2 as pb

_PAIR = """
backend: "double"
max_batch_size: 4
input { name: "LEFT" data_type: TYPE_FP32 dims: [ -1 ] }
input { name: "RIGHT" data_type: TYPE_INT32 dims: [ 2 ] }
output { name: "LEFT_BACK" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "RIGHT_BACK" data_type: TYPE_INT32 dims: [ 2 ] }
dynamic_batching { }
"""
# Each answers its inputs.
MODELS = {
    "echo": echo_config(),
    "text": echo_config(datatype="STRING", dims=(2,)),
    "pair": _PAIR,
    "whole": echo_config(datatype="FP32", dims=(-1, 2), max_batch_size=0, extra=""),
}
# Which input each output gives back.
_SOURCES = {"OUTPUT0": "INPUT0", "LEFT_BACK": "LEFT", "RIGHT_BACK": "RIGHT"}
_OUTPUTS = {name: ["LEFT_BACK", "RIGHT_BACK"] if name == "pair" else ["OUTPUT0"] for name in MODELS}


@dataclass(frozen=True, slots=True)
class Sent:
    """A message, and the request that it was before it was damaged; None if it never was right."""

    message: bytes
    origin: bytes | None

    @property
    def is_due_an_answer(self) -> bool:
        """Whether it is still right without doubt: as it was but for its id, and for numbers, any of which will do."""
        if self.origin is None:
            return False
        try:
            message = pb.ModelInferRequest.FromString(self.message)
        except DecodeError:
            return False
        origin = pb.ModelInferRequest.FromString(self.origin)
        if message.model_name != "text":
            for each in (message, origin):
                each.raw_input_contents[:] = [bytes(len(raw)) for raw in each.raw_input_contents]
        message.id = origin.id
        return bool(message == origin)


class Messages:
    """Requests to MODELS, all different; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)  # noqa: S311 - the same messages each time
        self._made = 0

    def good(self) -> Sent:
        """A request that is right."""
        message = self._request()
        return Sent(message, message)

    def damaged(self) -> Sent:
        """One that was right, and may be still, or one that is as odd as the codec's own tests have them."""
        if self._dice.random() < 0.2:
            return Sent(self._odd(), None)
        origin = self._request()
        message = bytearray(origin)
        for _ in range(self._dice.choice((1, 1, 1, 2, 5))):
            self._dice.choice((self._flip, self._set, self._cut, self._insert, self._splice))(message)
        return Sent(bytes(message), origin)

    def _request(self) -> bytes:
        make = self._dice.choice((self._numbers, self._typed, self._text, self._pair, self._whole))
        message = pb.ModelInferRequest.FromString(make())
        self._made += 1
        message.id = self._dice.choice("aé漢") * self._dice.randrange(4) + str(self._made)
        encoded: bytes = message.SerializeToString()
        return encoded

    def _odd(self) -> bytes:
        """Mostly for one of the models: of a name that comes twice the last counts."""
        name = self._dice.choice(list(MODELS)).encode()
        return damaged_request(self._dice) + self._dice.choice((b"", *[b"\n" + bytes((len(name),)) + name] * 3))

    def _numbers(self) -> bytes:
        rows = self._dice.randint(1, 8)
        named = [Output("OUTPUT0")] if self._dice.random() < 0.3 else []
        return infer_request("echo", [Tensor("INPUT0", "INT64", (rows, 4))], [self._bytes(32 * rows)], outputs=named)

    def _typed(self) -> bytes:
        values = [self._dice.getrandbits(40) for _ in range(4)]
        return infer_request("echo", [Tensor("INPUT0", "INT64", (1, 4), {"int64_contents": values})])

    def _text(self) -> bytes:
        words = [self._bytes(self._dice.randrange(9)) for _ in range(2)]
        if self._dice.random() < 0.3:
            return infer_request("text", [Tensor("INPUT0", "BYTES", (1, 2), {"bytes_contents": words})])
        return infer_request("text", [Tensor("INPUT0", "BYTES", (1, 2))], [_as_raw(words)])

    def _pair(self) -> bytes:
        columns = self._dice.randint(1, 9)
        inputs = [Tensor("LEFT", "FP32", (1, columns)), Tensor("RIGHT", "INT32", (1, 2))]
        raw = [self._bytes(4 * columns), self._bytes(8)]
        if self._dice.random() < 0.5:
            inputs.reverse()
            raw.reverse()
        return infer_request("pair", inputs, raw)

    def _whole(self) -> bytes:
        rows = self._dice.randint(1, 9)
        return infer_request("whole", [Tensor("INPUT0", "FP32", (rows, 2))], [self._bytes(8 * rows)])

    def _bytes(self, count: int) -> bytes:
        return self._dice.randbytes(count)

    def _place(self, message: bytearray) -> int:
        return self._dice.randint(0, max(0, len(message) - 1))

    def _flip(self, message: bytearray) -> None:
        if message:
            message[self._place(message)] ^= 1 << self._dice.randrange(8)

    def _set(self, message: bytearray) -> None:
        if message:
            message[self._place(message)] = self._dice.choice((0, 1, 0x7F, 0x80, 0xFF))

    def _cut(self, message: bytearray) -> None:
        start = self._place(message)
        del message[start : start + self._dice.choice((1, 1, 4, len(message)))]

    def _insert(self, message: bytearray) -> None:
        start = self._place(message)
        message[start:start] = self._bytes(self._dice.randint(1, 4))

    def _splice(self, message: bytearray) -> None:
        other = self._request()
        message[self._place(message) :] = other[self._dice.randint(0, len(other)) :]


def fault_of(message: bytes, answer: bytes) -> str | None:
    """What is wrong with ``answer`` to ``message``, as protobuf reads the two; None if nothing is."""
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        return "answered though it does not parse"
    response = pb.ModelInferResponse.FromString(answer)
    if request.model_name not in MODELS:
        return "answered by a model that there is not"
    if (response.model_name, response.model_version, response.id) != (request.model_name, "1", request.id):
        return "the answer is another's"
    asked = [output.name for output in request.outputs] or _OUTPUTS[request.model_name]
    if [output.name for output in response.outputs] != asked:
        return "the outputs are not those that were asked for"
    return _fault_of_data(request, response)


def _fault_of_data(request: Any, response: Any) -> str | None:
    sent = _sent_by(request)
    sources = {_SOURCES[name] for name in _OUTPUTS[request.model_name]}
    if len(request.inputs) != len(sources) or set(sent) != sources:
        return "answered though the inputs are not the model's"
    if len(response.outputs) != len(response.raw_output_contents):
        return "as many outputs as data there are not"
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        tensor, data = sent[_SOURCES[output.name]]
        if (output.datatype, list(output.shape)) != (tensor.datatype, list(tensor.shape)):
            return f"{output.name} is not of the kind that was sent"
        if raw != data:
            return f"{output.name} is not what was sent"
    return None


def _sent_by(request: Any) -> dict[str, tuple[Any, bytes | None]]:
    """The inputs of a request by name, and their data as raw bytes, None where there is none."""
    tensors = list(request.inputs)
    raw: Sequence[bytes | None] = request.raw_input_contents or [_typed_as_raw(tensor) for tensor in tensors]
    if len(raw) != len(tensors):
        raw = [None] * len(tensors)
    return {tensor.name: (tensor, data) for tensor, data in zip(tensors, raw, strict=True)}


def _typed_as_raw(tensor: Any) -> bytes | None:
    """Typed contents as raw ones, of the datatypes that the models take."""
    contents = tensor.contents
    if tensor.datatype == "BYTES":
        return _as_raw(contents.bytes_contents)
    kinds = {"INT64": ("<i8", contents.int64_contents), "INT32": ("<i4", contents.int_contents),
             "FP32": ("<f4", contents.fp32_contents)}  # fmt: skip
    if tensor.datatype not in kinds:
        return None
    dtype, values = kinds[tensor.datatype]
    return np.array(values, dtype).tobytes()


def _as_raw(words: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(word)) + word for word in words)
