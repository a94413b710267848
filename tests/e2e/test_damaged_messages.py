"""Messages damaged on their way, to a server that others ask too: no crash, no hang, and no answer but what is due."""

import asyncio
import os
import struct
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.transports import TRANSPORTS, installed
from tests.e2e.wire import SERVICE, Output, Tensor, infer_request
from tritonclient.grpc import service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.transports

# More for a search: DAMAGED_CALLS=100000 pytest tests/e2e/test_damaged_messages.py --timeout 3600
CALLS = int(os.environ.get("DAMAGED_CALLS", "2000"))
CALLERS = 32
# Of so many calls one is right, and its answer must be.
GOOD_EVERY = 5

PAIR = """
backend: "double"
max_batch_size: 4
input { name: "LEFT" data_type: TYPE_FP32 dims: [ -1 ] }
input { name: "RIGHT" data_type: TYPE_INT32 dims: [ 2 ] }
output { name: "LEFT_BACK" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "RIGHT_BACK" data_type: TYPE_INT32 dims: [ 2 ] }
dynamic_batching { }
"""
# A call that takes as long as LIMIT_S hangs.
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
# Which input each output gives back.
SOURCES = {"OUTPUT0": "INPUT0", "LEFT_BACK": "LEFT", "RIGHT_BACK": "RIGHT"}

Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class Messages:
    """Requests to the models of :func:`serve`, all different; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)  # noqa: S311 - the same messages each time
        self._sent = 0

    def good(self) -> bytes:
        """A request that is right."""
        make = self._dice.choice((self._numbers, self._text, self._pair, self._typed))
        message = pb.ModelInferRequest.FromString(make())
        self._sent += 1
        message.id = self._dice.choice("aé漢") * self._dice.randrange(4) + str(self._sent)
        encoded: bytes = message.SerializeToString()
        return encoded

    def damaged(self) -> bytes:
        """One that was right, and may be still."""
        message = bytearray(self.good())
        for _ in range(self._dice.choice((1, 1, 1, 2, 5))):
            self._dice.choice((self._flip, self._set, self._cut, self._insert, self._splice))(message)
        return bytes(message)

    def _numbers(self) -> bytes:
        rows = self._dice.randint(1, 8)
        named = [Output("OUTPUT0")] if self._dice.random() < 0.3 else []
        return infer_request("echo", [Tensor("INPUT0", "INT64", (rows, 4))], [self._bytes(32 * rows)], outputs=named)

    def _typed(self) -> bytes:
        values = [self._dice.getrandbits(40) for _ in range(4)]
        return infer_request("echo", [Tensor("INPUT0", "INT64", (1, 4), {"int64_contents": values})])

    def _text(self) -> bytes:
        words = [self._bytes(self._dice.randrange(9)) for _ in range(2)]
        raw = b"".join(struct.pack("<I", len(word)) + word for word in words)
        return infer_request("text", [Tensor("INPUT0", "BYTES", (1, 2))], [raw])

    def _pair(self) -> bytes:
        columns = self._dice.randint(1, 9)
        inputs = [Tensor("LEFT", "FP32", (1, columns)), Tensor("RIGHT", "INT32", (1, 2))]
        raw = [self._bytes(4 * columns), self._bytes(8)]
        if self._dice.random() < 0.5:
            inputs.reverse()
            raw.reverse()
        return infer_request("pair", inputs, raw)

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
        other = self.good()
        message[self._place(message) :] = other[self._dice.randint(0, len(other)) :]


def fault_of(message: bytes, answer: bytes) -> str | None:
    """What is wrong with ``answer`` to ``message``, as protobuf reads the two; None if nothing is."""
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        return "answered though it does not parse"
    response = pb.ModelInferResponse.FromString(answer)
    if (response.model_name, response.id) != (request.model_name, request.id):
        return "the answer is another's"
    asked = [output.name for output in request.outputs]
    if asked and [output.name for output in response.outputs] != asked:
        return "the outputs are not those that were asked for"
    sent = sent_by(request)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        tensor, data = sent[SOURCES[output.name]]
        if (output.datatype, list(output.shape)) != (tensor.datatype, list(tensor.shape)):
            return f"{output.name} is not of the kind that was sent"
        if raw != data:
            return f"{output.name} is not what was sent"
    return None


def sent_by(request: Any) -> dict[str, tuple[Any, bytes]]:
    """The inputs of a request by name, and their data as raw bytes."""
    if request.raw_input_contents:
        each = zip(request.inputs, request.raw_input_contents, strict=True)
        return {tensor.name: (tensor, raw) for tensor, raw in each}
    return {tensor.name: (tensor, typed_as_raw(tensor)) for tensor in request.inputs}


def typed_as_raw(tensor: Any) -> bytes:
    """Typed contents as raw ones, of the datatypes that the models take."""
    contents = tensor.contents
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(word)) + word for word in contents.bytes_contents)
    values: Sequence[float] = {
        "INT64": contents.int64_contents, "INT32": contents.int_contents, "FP32": contents.fp32_contents,
    }[tensor.datatype]  # fmt: skip
    return np.array(values, {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4"}[tensor.datatype]).tobytes()


class Callers:
    """Calls at a time, and how they end."""

    def __init__(self, infer: Call, messages: Messages) -> None:
        self._infer = infer
        self._messages = messages
        self._left = CALLS
        self.ends: Counter[str] = Counter()

    async def run(self) -> None:
        """Call until all calls have ended; fails at the first that ended wrong."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._call_on())

    async def _call_on(self) -> None:
        while self._left > 0:
            self._left -= 1
            good = self._left % GOOD_EVERY == 0
            message = self._messages.good() if good else self._messages.damaged()
            try:
                answer = await self._infer(message, timeout=LIMIT_S)
            except grpc.aio.AioRpcError as error:
                code, wrong = error.code(), None
                if good or code not in REFUSALS:
                    wrong = error.details() or "no reason"
            else:
                code, wrong = grpc.StatusCode.OK, fault_of(message, answer)
            assert wrong is None, f"{code.name}: {wrong}: {message!r}"
            self.ends[code.name] += 1


async def call_all(address: str) -> Counter[str]:
    """Make the calls; how they ended."""
    async with grpc.aio.insecure_channel(address) as channel:
        infer: Call = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        callers = Callers(infer, Messages(seed=CALLS))
        await callers.run()
    return callers.ends


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_damaged_messages_are_refused_or_answered_as_they_read_and_others_do_not_notice(
    tmp_path: Path, transport: str
) -> None:
    write_model(tmp_path, "echo", echo_config())
    write_model(tmp_path, "text", echo_config(datatype="STRING", dims=(2,)))
    write_model(tmp_path, "pair", PAIR)
    with ServerProcess(tmp_path, options=("--transport", installed(transport))) as server:
        ends = asyncio.run(call_all(server.grpc_address))
        # Were they all of one kind, the others would not have been tried.
        assert min(ends["OK"], ends["INVALID_ARGUMENT"]) > CALLS / 5, ends
        print(f"{transport}: {dict(ends)}")  # noqa: T201 - shown with -s, for a search
        scrape_until(server, lambda found: found.total("nv_inference_pending_request_count") == 0)
        assert server.terminate() == 0
        assert "Traceback" not in server.log
