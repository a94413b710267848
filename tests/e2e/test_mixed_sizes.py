"""Requests from a byte to 8 MiB at once, to one model: each answer is its request's to the byte, wherever it lies."""

import asyncio
import gzip
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from tests.e2e.http2 import Http2, message
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.shared_object import SharedObject, ask, place, register
from tests.e2e.transports import TRANSPORTS, installed, messages
from tests.e2e.wire import SERVICE, Output, Tensor, Wire
from tritonclient.grpc import service_pb2 as pb

pytestmark = pytest.mark.transports

# More for a search: MIXED_SECONDS=600 pytest tests/e2e/test_mixed_sizes.py --timeout 3600
SECONDS = float(os.environ.get("MIXED_SECONDS", "2.5"))
# Each with as many callers.
CONNECTIONS, CALLERS = 2, 8
# Answers that a caller has in its hands before it looks at the first.
HELD = 3
MOST_ROWS = 8
LARGEST = 8 * 2**20
# What the callers send is cut out of this.
NOISE = Random(0).randbytes(LARGEST + 2**16)  # noqa: S311 - the same bytes each time
# Requests of one of these may meet in a batch.
COLUMNS = (1, 2, 3, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097)
# One after another, so that data begin at any address, and around the lengths that take a byte more to say.
ID_LENGTHS: tuple[int, ...] = (*range(16), 100, 127, 128, 5000)
# An item's size in each model: what is larger than a byte is misaligned by ids. In a client's memory, bytes are copied
# first and floats used where they lie.
MODELS = {"bytes": ("UINT8", 1), "numbers": ("FP64", 8)}
SUCCESS = "nv_inference_request_success"
SHARED_BYTES = 2**15

Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class Sent:
    """A request to one of MODELS, and what its answer has to have."""

    encoded: bytes
    model: str
    id: str
    shape: tuple[int, int]
    data: bytes

    def check(self, answer: bytes) -> None:
        """Raise AssertionError unless ``answer`` is the answer."""
        response = pb.ModelInferResponse.FromString(answer)
        assert (response.model_name, response.id) == (self.model, self.id)
        assert [tuple(output.shape) for output in response.outputs] == [self.shape]
        # Not for pytest to show the difference: megabytes.
        same = list(response.raw_output_contents) == [self.data]
        assert same, f"the answer to {self.id} for {self.shape} of {self.model} is another's"


def sent(model: str, request_id: str, shape: tuple[int, int], data: bytes) -> Sent:
    """A request to echo ``data``."""
    request = pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[data])
    request.inputs.add(name="INPUT0", datatype=MODELS[model][0], shape=shape)
    return Sent(request.SerializeToString(), model, request_id, shape, data)


class Mix:
    """Requests of all sizes. Belongs to one caller, by whose number nobody else's are the same."""

    def __init__(self, caller: int) -> None:
        self._dice = Random(caller)  # noqa: S311 - the same requests each time
        self._caller = caller
        self._made = 0

    def request(self) -> Sent:
        """The next one; each caller begins with one of the smallest or one of the largest."""
        self._made += 1
        model = self._dice.choice(("bytes", "bytes", "numbers"))
        size = MODELS[model][1]
        rows, columns = self._dice.randint(1, MOST_ROWS), self._columns()
        if self._made == 1:
            rows, columns = 1, LARGEST if self._caller % 4 == 0 else 1
        columns = max(1, min(columns, LARGEST // (rows * size)))
        return sent(model, self._id(), (rows, columns), self._data(rows * columns * size))

    def _columns(self) -> int:
        if self._dice.random() < 0.85:
            return self._dice.choice(COLUMNS)
        # As many between a thousand and two as between a million and two.
        return round(math.exp2(self._dice.uniform(0, 23)))

    def _id(self) -> str:
        return f"{self._caller}-{self._made}-" + "i" * self._dice.choice(ID_LENGTHS)

    def _data(self, size: int) -> bytes:
        """That of no other request, where a byte or two can tell."""
        start = self._dice.randrange(len(NOISE) - size)
        label = f"{self._caller}-{self._made}".encode()[:size]
        return label + NOISE[start + len(label) : start + size]


@contextmanager
def serving(folder: Path, transport: str) -> Iterator[ServerProcess]:
    """A server of MODELS, which may be told where data lie."""
    for model, (datatype, _) in MODELS.items():
        write_model(folder, model, echo_config(datatype=datatype, dims=(-1,), max_batch_size=MOST_ROWS))
    options = ("--transport", installed(transport), "--allow-client-shm", "true")
    with ServerProcess(folder, options=options) as server:
        yield server
        scrape_until(server, lambda found: found.total("nv_inference_pending_request_count") == 0)
        assert server.terminate() == 0
        assert "Traceback" not in server.log


async def call_all(address: str, end_s: float) -> int:
    """Call over all connections until it is time; how many were answered."""
    async with asyncio.TaskGroup() as group:
        callings = [group.create_task(_call_over_one(address, first, end_s)) for first in range(CONNECTIONS)]
    return sum(calling.result() for calling in callings)


async def _call_over_one(address: str, number: int, end_s: float) -> int:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel, asyncio.TaskGroup() as group:
        infer: Call = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        mixes = [Mix(number * CALLERS + each) for each in range(CALLERS)]
        callings = [group.create_task(_call_until(infer, mix, end_s)) for mix in mixes]
        # The channel is closed after all have ended.
        return sum([await calling for calling in callings])


async def _call_until(infer: Call, mix: Mix, end_s: float) -> int:
    held: deque[tuple[Sent, bytes]] = deque()
    answered = 0
    while time.monotonic() < end_s:
        request = mix.request()
        held.append((request, await infer(request.encoded, timeout=LIMIT_S)))
        answered += 1
        if len(held) > HELD:
            first, answer = held.popleft()
            first.check(answer)
    for request, answer in held:
        request.check(answer)
    return answered


class Rewriter:
    """A client that names its memory in requests and writes there all the time: only these two bytes, for all of it."""

    BYTES = (0x55, 0xAA)

    def __init__(self, wire: Wire, memory: SharedObject) -> None:
        self._wire = wire
        self._memory = memory
        self._dice = Random(1)  # noqa: S311 - the same requests each time
        self._done = threading.Event()

    def ask_until(self, end_s: float) -> int:
        """Ask until it is time, and hold each answer against what can have been there; how many there were."""
        self._memory.put(0, bytes((self.BYTES[0],)) * SHARED_BYTES)
        register(self._wire, "rewritten", self._memory.key, size=self._memory.size)
        writer = threading.Thread(target=self._write)
        writer.start()
        answered = 0
        try:
            while time.monotonic() < end_s:
                self._ask(answer_in_memory=answered % 2 == 0)
                answered += 1
        finally:
            self._done.set()
            writer.join()
        return answered

    def _write(self) -> None:
        while not self._done.is_set():
            for each in self.BYTES:
                self._memory.put(0, bytes((each,)) * SHARED_BYTES)

    def _ask(self, *, answer_in_memory: bool) -> None:
        model, (datatype, item) = self._dice.choice(list(MODELS.items()))
        columns = self._dice.choice([each for each in COLUMNS if each * item <= SHARED_BYTES // 2])
        size = columns * item
        source = place("rewritten", size, self._dice.randrange(SHARED_BYTES - size))
        target = [Output("OUTPUT0", place("rewritten", size, SHARED_BYTES + 1))] if answer_in_memory else []
        self._memory.put(SHARED_BYTES, bytes(size + 2))
        answer = ask(self._wire, model, [Tensor("INPUT0", datatype, (1, columns), parameters=source)], outputs=target)
        (found,) = answer.raw_output_contents
        if answer_in_memory:
            around = bytes(self._memory.memory[SHARED_BYTES : SHARED_BYTES + size + 2])
            assert around[:1] + around[-1:] == bytes(2), "more was written than the answer"
            found = around[1:-1]
        assert len(found) == size
        assert set(found) <= set(self.BYTES), f"an answer for {columns} of {model} has what was never there"


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_answers_to_requests_of_all_sizes_are_their_own_to_the_byte(tmp_path: Path, transport: str) -> None:
    with (
        serving(tmp_path, transport) as server,
        Wire(server.grpc_address) as wire,
        SharedObject(2 * SHARED_BYTES + 2) as memory,
        ThreadPoolExecutor(1) as pool,
    ):
        end_s = time.monotonic() + SECONDS
        rewriting = pool.submit(Rewriter(wire, memory).ask_until, end_s)
        answered = asyncio.run(call_all(server.grpc_address, end_s))
        rewritten = rewriting.result()
        # Counted after they are sent.
        scrape_until(server, lambda found: found.total(SUCCESS) == answered + rewritten)
        assert min(answered, rewritten) > CONNECTIONS * CALLERS
        print(f"{transport}: {answered} answers, {rewritten} of memory that is rewritten")  # noqa: T201 - shown with -s


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_answers_that_their_clients_do_not_read_yet_stay_as_they_are_while_others_are_given(
    tmp_path: Path, transport: str
) -> None:
    """They do not fit into what is between client and server, so the server holds them."""
    with serving(tmp_path, transport) as server, Wire(server.grpc_address) as wire, ExitStack() as connections:
        waiting = []
        for number, rows in enumerate((1, 3, MOST_ROWS)):
            request = repetitive(number, rows)
            connection = connections.enter_context(Http2(server.grpc_address, patient=False))
            body = message(gzip.compress(request.encoded), compressed=True)
            waiting.append((request, connection, connection.call(body, headers={"grpc-encoding": "gzip"})))
        scrape_until(server, lambda found: found.total(SUCCESS) == len(waiting))
        mix = Mix(0)
        for request in (mix.request() for _ in range(100)):
            request.check(wire.call("ModelInfer", request.encoded))
        for request, connection, stream in waiting:
            connection.read_on(stream)
            ((_, answer),) = messages(connection.answer(stream))
            request.check(answer)


def repetitive(number: int, rows: int) -> Sent:
    """A request of 6 MiB that is small when compressed: a connection takes no more before it is read from."""
    pattern = Random(number).randbytes(997)  # noqa: S311 - the same bytes each time
    columns = 6 * 2**20 // rows
    data = (pattern * (rows * columns // len(pattern) + 1))[: rows * columns]
    return sent("bytes", "i" * number, (rows, columns), data)
