"""Messages damaged on their way, to a server that others ask too: no crash, no hang, and no answer but what is due."""

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from tests.e2e.damaged_messages import MODELS, Messages, Sent, fault_of
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, write_model
from tests.e2e.transports import TRANSPORTS, installed
from tests.e2e.wire import SERVICE

pytestmark = pytest.mark.transports

# More for a search: DAMAGED_CALLS=100000 pytest tests/e2e/test_damaged_messages.py -s --timeout 3600
CALLS = int(os.environ.get("DAMAGED_CALLS", "1000"))
SEED = int(os.environ.get("DAMAGED_SEED", str(CALLS)))
CALLERS = 32
# Of so many calls one is right, and its answer must be.
GOOD_EVERY = 5
# A call that takes as long as LIMIT_S hangs.
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)

Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class Callers:
    """Calls at a time, and how they end. Belongs to one event loop."""

    def __init__(self, infer: Call, messages: Messages) -> None:
        self._infer = infer
        self._messages = messages
        self._begun = 0
        self.ends: Counter[str] = Counter()

    async def run(self) -> None:
        """Call until all calls have ended; fails at the first that ended wrong."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._call_on())

    async def _call_on(self) -> None:
        while self._begun < CALLS:
            self._begun += 1
            number = self._begun
            sent = self._messages.good() if number % GOOD_EVERY == 0 else self._messages.damaged()
            code, wrong = await self._end_of(sent)
            assert wrong is None, f"message {number} of seed {SEED}: {code}: {wrong}: {sent.message!r}"
            self.ends[code] += 1

    async def _end_of(self, sent: Sent) -> tuple[str, str | None]:
        """The code that a call ends with, and what is wrong with that, if anything is."""
        try:
            answer = await self._infer(sent.message, timeout=LIMIT_S)
        except grpc.aio.AioRpcError as error:
            wrong = error.code() not in REFUSALS or sent.is_due_an_answer
            return error.code().name, error.details() or "no reason" if wrong else None
        return "OK", fault_of(sent.message, answer)


async def call_all(address: str) -> Counter[str]:
    """Make the calls; how they ended."""
    async with grpc.aio.insecure_channel(address) as channel:
        infer: Call = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        callers = Callers(infer, Messages(SEED))
        await callers.run()
    return callers.ends


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_damaged_messages_are_refused_or_answered_as_they_read_and_others_do_not_notice(
    tmp_path: Path, transport: str
) -> None:
    for name, config in MODELS.items():
        write_model(tmp_path, name, config)
    with ServerProcess(tmp_path, options=("--transport", installed(transport))) as server:
        ends = asyncio.run(call_all(server.grpc_address))
        # Were they all of one kind, the others would not have been tried.
        assert min(ends["OK"], ends["INVALID_ARGUMENT"]) > CALLS / 5, ends
        print(f"{transport}: {dict(ends)}")  # noqa: T201 - shown with -s, for a search
        scrape_until(server, lambda found: found.total("nv_inference_pending_request_count") == 0)
        assert server.terminate() == 0
        assert "Traceback" not in server.log
