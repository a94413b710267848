"""Callers of every temper, who check each answer they get.

A caller makes one call after another, each with numbers that no other call has, so that an answer that was meant for
somebody else is noticed. Every way in which a call ends is either what its model and its mood allow, or an
AssertionError.
"""

import asyncio
import enum
import queue
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tests.e2e.server_process import LIMIT_S
from tests.e2e.tensors import Rows, infer_inputs, unique_rows

MAX_ROWS = 8
_NUMBERS_OF_A_CALL = 4 * MAX_ROWS
_CALLS_OF_A_CALLER = 1_000_000


class Mood(enum.Enum):
    """What a caller does with a call."""

    PATIENT = "patient"
    # Has a deadline that may pass before, during or after the execution.
    HURRIED = "hurried"
    # Takes the call back after a moment.
    FICKLE = "fickle"
    # Sends what the model does not take.
    MUDDLED = "muddled"


class End(enum.Enum):
    """How a call ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    REFUSED = "refused"
    TURNED_AWAY = "turned away"
    LATE = "late"
    TAKEN_BACK = "taken back"


# As likely as they are often here.
_MOODS = (*[Mood.PATIENT] * 6, *[Mood.HURRIED] * 2, *[Mood.FICKLE] * 2, Mood.MUDDLED)

Tally = Counter[tuple[str, Mood, End]]


@dataclass(frozen=True, slots=True)
class Faults:
    """What may go wrong with a model's calls: what its failures say, and whether its queue may be full."""

    text: str | None = None
    queue_fills: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call to come."""

    model: str
    mood: Mood
    rows: Rows
    moment_s: float

    def inputs(self) -> list[Any]:
        """What is sent: for the muddled a column too many, or a row too many, or floats."""
        if self.mood is not Mood.MUDDLED:
            return infer_inputs({"INPUT0": self.rows})
        rows = len(self.rows)
        if rows % 3 == 0:
            return infer_inputs({"INPUT0": np.zeros((rows, 5), np.int64)})
        wrong = np.zeros((MAX_ROWS + 1, 4), np.int64) if rows % 3 == 1 else self.rows.astype(np.float64)
        return infer_inputs({"INPUT0": wrong})

    @property
    def client_timeout_s(self) -> float:
        """The deadline; the patient have one only to notice a call that never ends."""
        return self.moment_s if self.mood is Mood.HURRIED else LIMIT_S


class Caller:
    """Makes up calls, and judges how they end. Belongs to one thread or task."""

    def __init__(self, number: int, models: Mapping[str, Faults], until_s: float) -> None:
        self.tally: Tally = Counter()
        self._models = models
        self._names = list(models)
        self._until_s = until_s
        self._dice = np.random.default_rng(number)
        self._start = number * _CALLS_OF_A_CALLER * _NUMBERS_OF_A_CALL

    def next_call(self) -> Call | None:
        """A call; None when it is time to stop."""
        if time.monotonic() >= self._until_s:
            return None
        self._start += _NUMBERS_OF_A_CALL
        return Call(
            self._names[self._dice.integers(len(self._names))],
            _MOODS[self._dice.integers(len(_MOODS))],
            unique_rows(int(self._dice.integers(1, MAX_ROWS + 1)), start=self._start),
            # Mostly about as long as a call takes.
            self._dice.exponential(0.1),
        )

    def judge(self, call: Call, result: Any, error: Exception | None) -> None:
        """Count how a call ended. Raises AssertionError if it must not end so."""
        end = self._answered(call, result) if error is None else self._failed(call, error)
        self.tally[call.model, call.mood, end] += 1

    def _answered(self, call: Call, result: Any) -> End:
        assert call.mood is not Mood.MUDDLED, "a malformed request was answered"
        assert np.array_equal(result.as_numpy("OUTPUT0"), call.rows), "an answer is somebody else's"
        return End.ANSWERED

    def _failed(self, call: Call, error: Exception) -> End:
        if isinstance(error, asyncio.CancelledError):
            code, text = "StatusCode.CANCELLED", ""
        else:
            assert isinstance(error, grpcclient.InferenceServerException), repr(error)
            code, text = error.status(), error.message()
        faults = self._models[call.model]
        match code:
            case "StatusCode.INVALID_ARGUMENT" if call.mood is Mood.MUDDLED:
                return End.REFUSED
            case "StatusCode.INTERNAL" if faults.text is not None and faults.text in text:
                return End.FAILED
            case "StatusCode.UNAVAILABLE" if faults.queue_fills and "Exceeds maximum queue size" in text:
                return End.TURNED_AWAY
            case "StatusCode.UNAVAILABLE" if call.mood is Mood.HURRIED and "Request timeout expired" in text:
                return End.LATE
            case "StatusCode.DEADLINE_EXCEEDED" if call.mood is Mood.HURRIED:
                return End.LATE
            case "StatusCode.CANCELLED" if call.mood is Mood.FICKLE:
                return End.TAKEN_BACK
        raise AssertionError(f"a {call.mood.value} call of {call.model} ended in {code}: {text}")


def call_in_thread(client: Any, caller: Caller) -> Tally:
    """Call with callbacks, from a thread of its own, until it is time to stop."""
    while (call := caller.next_call()) is not None:
        ends: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        ongoing = client.async_infer(
            call.model,
            call.inputs(),
            callback=lambda result, error, ends=ends: ends.put((result, error)),
            client_timeout=call.client_timeout_s,
        )
        if call.mood is Mood.FICKLE:
            time.sleep(call.moment_s)
            ongoing.cancel()
        caller.judge(call, *ends.get(timeout=2 * LIMIT_S))
        assert ends.empty(), "a call ended twice"
    return caller.tally


async def call_in_loop(client: aioclient.InferenceServerClient, caller: Caller) -> Tally:
    """Call with coroutines, as one task among others, until it is time to stop."""
    while (call := caller.next_call()) is not None:
        task = asyncio.create_task(
            client.infer(call.model, call.inputs(), client_timeout=call.client_timeout_s), name="call"
        )
        if call.mood is Mood.FICKLE:
            await asyncio.sleep(call.moment_s)
            task.cancel()
        await asyncio.wait([task], timeout=2 * LIMIT_S)
        assert task.done(), "a call never ended"
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        assert error is None or isinstance(error, Exception | asyncio.CancelledError)
        caller.judge(call, None if error else task.result(), error)  # type: ignore[arg-type]
    return caller.tally
