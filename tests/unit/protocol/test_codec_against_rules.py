"""Damaged messages: the codec refuses or reads them just as protobuf and the protocol's rules say."""

import os
from collections import Counter
from random import Random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.protocol.damaged_requests import damaged_request
from tests.unit.protocol.request_rules import Said, judge

from preheat.errors import ServingError
from preheat.messages import InferRequest
from preheat.protocol.codec import decode_request
from preheat.tensors import Array

# More for a search: a hundred thousand take about a minute.
MESSAGES = int(os.environ.get("DAMAGED_MESSAGES", "20000"))


def assert_judged_right(payload: bytes) -> str:
    """Hold the codec against the rules; what became of the message."""
    verdict, outcome = judge(payload), decoded(payload)
    if isinstance(outcome, ServingError):
        assert type(outcome) in verdict.refusals, f"{outcome!r} for {payload!r}"
        assert str(outcome)
        return type(outcome).__name__ if verdict.parses else "unparsable"
    assert verdict.said is not None, f"taken in spite of {verdict.refusals}: {payload!r}"
    # By their text, in which NaN is NaN, and True is not 1.
    assert repr(said_by(outcome)) == repr(verdict.said), payload
    return "taken"


def decoded(payload: bytes) -> InferRequest | ServingError:
    try:
        return decode_request(payload, deadline_s=None)
    except ServingError as refusal:
        return refusal


def said_by(request: InferRequest) -> Said:
    inputs = [(each.name, each.datatype, each.shape, plain(each.data)) for each in request.inputs]
    outputs = list(request.requested_outputs)
    sources = {str(position): (place.region, place.offset, place.size) for position, place in request.sources}
    places = {name: (place.region, place.offset, place.size) for name, place in request.places.items()}
    return Said(request.model, request.version, request.id, inputs, outputs, dict(request.parameters), sources, places)


def plain(data: bytes | memoryview | Array) -> bytes | list[bytes]:
    if not isinstance(data, np.ndarray):
        return bytes(data)
    elements: Any = data.tolist()
    return elements if data.dtype.kind == "O" else data.tobytes()


@settings(
    max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.randoms(use_true_random=False))
def test_a_damaged_message_is_judged_as_the_rules_say(dice: Random) -> None:
    assert_judged_right(damaged_request(dice))


def test_a_message_is_judged_for_itself_however_much_it_is_like_the_one_before() -> None:
    """What is remembered of a message is held against all that follow of its length."""
    outcomes: Counter[str] = Counter()
    for seed in range(MESSAGES // 40):
        dice = Random(seed)  # noqa: S311 - the same messages each time
        payload = damaged_request(dice)
        for _ in range(20):
            assert_judged_right(payload)
            like = bytearray(payload)
            for _ in range(dice.randint(0, 2)):
                if like:
                    like[dice.randrange(len(like))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            outcomes[assert_judged_right(bytes(like))] += 1
    assert min(outcomes["taken"], outcomes["unparsable"], outcomes["InvalidRequest"]) > MESSAGES // 100, outcomes


def test_an_input_without_elements_may_come_without_data_also_after_it_came_with_raw_ones() -> None:
    without = b"*\x0d\n\x01q\x12\x05INT64\x1a\x01\0"
    for payload in (without, without + b":\0", without):
        assert assert_judged_right(payload) == "taken"


def test_many_damaged_messages_are_judged_as_the_rules_say() -> None:
    dice = (Random(seed) for seed in range(MESSAGES))  # noqa: S311 - the same messages each time
    outcomes = Counter(assert_judged_right(damaged_request(each)) for each in dice)
    # Were they all of one kind, the others would not have been tested.
    for outcome, share in {"taken": 0.3, "unparsable": 0.1, "InvalidRequest": 0.1, "Unsupported": 0.01}.items():
        assert outcomes[outcome] > share * MESSAGES, outcomes
