"""Every request is answered, and answered once."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.builders import PATIENCE_S, Replies, request

from preheat.errors import ExecutionFailed, InternalError, RequestCancelled
from preheat.scheduling.pending import Admitted, Answer, Pending, Reply
from preheat.scheduling.queue_policy import Standing

LATE, FIRST = RequestCancelled("late"), ExecutionFailed("first")


def owed(reply: Reply, settle: Callable[[Pending, Answer], None] = lambda *_: None) -> Pending:
    return Pending(request(), reply, admitted=Admitted({}, 1, ()), arrived_s=0.0, standing=Standing(), settle=settle)


def test_the_first_answer_is_given_and_later_ones_are_not() -> None:
    replies = Replies()
    pending = owed(replies)
    assert [pending.answered, pending.answer(FIRST), pending.answered, pending.answer(LATE)] == [
        False,
        FIRST,
        True,
        None,
    ]
    assert replies.answers == [FIRST]


def test_of_many_threads_that_answer_at_once_exactly_one_succeeds() -> None:
    racers, rounds = 8, 200
    lined_up = threading.Barrier(racers)
    replies = [Replies() for _ in range(rounds)]
    settled: list[Answer] = []
    pendings = [owed(each, lambda _, answer: settled.append(answer)) for each in replies]

    def race() -> list[bool]:
        won: list[bool] = []
        for pending in pendings:
            lined_up.wait(PATIENCE_S)
            won.append(pending.answer(FIRST) is FIRST)
        return won

    with ThreadPoolExecutor(racers) as pool:
        results = [future.result(PATIENCE_S) for future in [pool.submit(race) for _ in range(racers)]]
    assert [sum(each) for each in zip(*results, strict=True)] == [1] * rounds
    assert all(each.answers == [FIRST] for each in replies)
    assert len(settled) == rounds


def test_a_reply_that_raises_hurts_nobody_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    settled: list[Answer] = []

    def break_down(_: Answer) -> Answer:
        raise ConnectionError("the client is gone")

    pending = owed(break_down, lambda _, answer: settled.append(answer))
    with caplog.at_level(logging.ERROR):
        assert isinstance(pending.answer(FIRST), InternalError)
    assert [type(each) for each in settled] == [InternalError]
    assert "the client is gone" in caplog.text
    assert not pending.answer(LATE)


def test_the_reply_is_given_before_the_request_is_settled() -> None:
    order: list[str] = []

    def reply(answer: Answer) -> Answer:
        order.append("reply")
        return answer

    owed(reply, lambda *_: order.append("settle")).answer(InternalError())
    assert order == ["reply", "settle"]


def test_a_reply_that_answers_its_own_request_gets_no_for_an_answer() -> None:
    second: list[Answer | None] = []

    def reply(answer: Answer) -> Answer:
        second.append(pending.answer(LATE))
        return answer

    pending = owed(reply)
    assert pending.answer(FIRST) is FIRST
    assert second == [None]


def test_what_is_settled_is_what_the_caller_got() -> None:
    settled: list[Answer] = []
    pending = owed(lambda _: LATE, lambda _, answer: settled.append(answer))
    assert pending.answer(FIRST) is LATE
    assert settled == [LATE]
