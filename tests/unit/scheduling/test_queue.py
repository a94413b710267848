"""The bounded queue: what it refuses, what it forgets, and that many threads neither lose nor share a request."""

import threading
import time
from collections.abc import Callable

import pytest
from tests.unit.builders import PATIENCE_S, background, pending

from preheat.errors import QueueFull
from preheat.scheduling.batching import BatchLimits, Choice
from preheat.scheduling.pending import Pending
from preheat.scheduling.queue import RequestQueue

ALONE = BatchLimits(max_rows=8)
PAIRS = BatchLimits(max_rows=2, joins=True)
# No test waits for this to pass.
PATIENT_PAIRS = BatchLimits(max_rows=2, joins=True, max_delay_s=3600.0)


def queue(
    limits: BatchLimits = ALONE,
    *,
    max_requests: int = 1000,
    max_bytes: int = 1000,
    clock: Callable[[], float] = time.monotonic,
) -> RequestQueue:
    return RequestQueue(limits, max_requests=max_requests, max_bytes=max_bytes, clock=clock)


class GateClock:
    """A clock that stands still and tells when it is read: a worker reads it just before it begins to wait."""

    def __init__(self) -> None:
        self._read = threading.Semaphore(0)

    def __call__(self) -> float:
        self._read.release()
        return 0.0

    def await_read(self) -> None:
        """Return when a worker has read it: what is put from now on finds that worker waiting."""
        assert self._read.acquire(timeout=PATIENCE_S)


def drain(requests: RequestQueue) -> list[Choice]:
    """What a worker takes until the queue is closed and empty."""
    taken: list[Choice] = []
    while (choice := requests.take()) is not None:
        taken.append(choice)
    return taken


def test_requests_are_taken_in_the_order_in_which_they_came() -> None:
    requests = queue()
    waiting = [pending() for _ in range(3)]
    assert all(requests.put(each) for each in waiting)
    assert len(requests) == 3
    taken = [requests.take() for _ in waiting]
    assert taken == [Choice([each]) for each in waiting]
    assert len(requests) == 0


def test_a_request_beyond_the_limit_in_number_is_refused_by_its_id_and_the_limit() -> None:
    requests = queue(max_requests=2)
    requests.put(pending())
    requests.put(pending())
    with pytest.raises(QueueFull, match=r"\[request id: seven\] Exceeds maximum queue size: 2 requests wait"):
        requests.put(pending(identity="seven"))
    assert len(requests) == 2


def test_a_request_beyond_the_limit_in_bytes_is_refused_and_what_it_would_add_is_said() -> None:
    requests = queue(max_bytes=10)
    requests.put(pending(payload_bytes=6))
    expected = r"<id_unknown>.*Exceeds maximum queue size: 6 bytes wait, 5 more would pass the limit of 10"
    with pytest.raises(QueueFull, match=expected):
        requests.put(pending(payload_bytes=5))
    assert requests.put(pending(payload_bytes=4))


def test_a_request_larger_than_the_limit_in_bytes_is_taken_only_when_nothing_else_waits() -> None:
    requests = queue(max_bytes=10)
    assert requests.put(pending(payload_bytes=11))
    with pytest.raises(QueueFull):
        requests.put(pending(payload_bytes=1))


@pytest.mark.parametrize("release", ["take", "discard"])
def test_what_leaves_the_queue_makes_room_in_requests_and_bytes(release: str) -> None:
    requests = queue(max_requests=2, max_bytes=10)
    oldest = pending(payload_bytes=5)
    requests.put(oldest)
    for _ in range(3):
        newest = pending(payload_bytes=5)
        assert requests.put(newest)
        if release == "take":
            requests.take()
        else:
            requests.discard(oldest)
        oldest = newest


def test_an_expired_request_makes_room_as_well() -> None:
    requests = queue(max_requests=2, max_bytes=10)
    expired = pending(payload_bytes=10, expires_s=0.0)
    requests.put(expired)
    assert requests.take() == Choice([], [expired])
    assert requests.put(pending(payload_bytes=5))
    assert requests.put(pending(payload_bytes=5))


def test_a_discarded_request_is_never_taken() -> None:
    requests = queue()
    gone, kept = pending(), pending()
    requests.put(gone)
    requests.put(kept)
    requests.discard(gone)
    assert requests.take() == Choice([kept])


def test_discarding_what_does_not_wait_changes_nothing() -> None:
    requests = queue(max_bytes=10)
    taken = pending(payload_bytes=10)
    requests.put(taken)
    requests.take()
    requests.discard(taken)
    requests.discard(pending(payload_bytes=10))
    requests.put(pending(payload_bytes=10))
    with pytest.raises(QueueFull):
        requests.put(pending(payload_bytes=1))


def test_a_closed_queue_takes_nothing_more_but_gives_what_waits() -> None:
    requests = queue()
    waiting = pending()
    requests.put(waiting)
    requests.close()
    assert not requests.put(pending())
    assert requests.take() == Choice([waiting])
    assert requests.take() is None


def test_a_batch_that_waits_to_grow_is_given_although_the_queue_closes() -> None:
    requests = queue(BatchLimits(max_rows=8, joins=True, max_delay_s=0.02))
    waiting = pending(arrived_s=time.monotonic())
    requests.put(waiting)
    requests.close()
    assert background(requests.take).result(PATIENCE_S) == Choice([waiting])


def test_closing_sends_every_waiting_worker_home() -> None:
    clock = GateClock()
    requests = queue(clock=clock)
    workers = [background(requests.take) for _ in range(4)]
    for _ in workers:
        clock.await_read()
    requests.close()
    assert [worker.result(PATIENCE_S) for worker in workers] == [None] * 4


def test_a_request_wakes_a_worker_that_waits() -> None:
    clock = GateClock()
    requests = queue(clock=clock)
    worker = background(requests.take)
    clock.await_read()
    waiting = pending()
    requests.put(waiting)
    assert worker.result(PATIENCE_S) == Choice([waiting])


def test_a_batch_that_becomes_full_wakes_the_worker_that_waits_for_it_to_grow() -> None:
    clock = GateClock()
    requests = queue(PATIENT_PAIRS, clock=clock)
    first, second = pending(), pending()
    requests.put(first)
    worker = background(requests.take)
    clock.await_read()
    requests.put(second)
    assert worker.result(PATIENCE_S) == Choice([first, second])


def test_a_lone_request_runs_when_its_delay_is_over() -> None:
    requests = queue(BatchLimits(max_rows=8, joins=True, max_delay_s=0.02))
    arrived_s = time.monotonic()
    lone = pending(arrived_s=arrived_s)
    requests.put(lone)
    assert background(requests.take).result(PATIENCE_S) == Choice([lone])
    assert time.monotonic() >= arrived_s + 0.02


def test_a_request_that_expires_while_its_batch_grows_is_refused_then() -> None:
    requests = queue(PATIENT_PAIRS)
    now_s = time.monotonic()
    brief = pending(arrived_s=now_s, expires_s=now_s + 0.02)
    requests.put(brief)
    assert background(requests.take).result(PATIENCE_S) == Choice([], [brief])


def test_a_request_that_expires_behind_another_batch_that_grows_is_refused_then() -> None:
    requests = queue(PATIENT_PAIRS)
    now_s = time.monotonic()
    requests.put(pending(key="a", arrived_s=now_s))
    brief = pending(key="b", arrived_s=now_s, expires_s=now_s + 0.02)
    requests.put(brief)
    taken = background(requests.take).result(PATIENCE_S)
    assert taken is not None
    assert (taken.batch, taken.expired) == ([], [brief])


def test_what_waits_behind_a_request_that_is_called_off_runs_at_once() -> None:
    clock = GateClock()
    requests = queue(PATIENT_PAIRS, clock=clock)
    growing, full = pending(key="a"), pending(key="b", rows=2)
    requests.put(growing)
    requests.put(full)
    worker = background(requests.take)
    clock.await_read()
    requests.discard(growing)
    assert worker.result(PATIENCE_S) == Choice([full])


def test_what_a_worker_leaves_behind_wakes_another_although_its_own_news_is_spent() -> None:
    clock = GateClock()
    requests = queue(PATIENT_PAIRS, clock=clock)
    workers = [background(requests.take) for _ in range(2)]
    for _ in workers:
        clock.await_read()
    first, other, second = pending(key="a"), pending(key="b", rows=2), pending(key="a")
    # Both workers hear of these, and wait on: the oldest may still grow, and the other is not the oldest.
    for each in (first, other):
        requests.put(each)
        clock.await_read()
    requests.put(second)
    taken = [worker.result(PATIENCE_S) for worker in workers]
    assert {tuple(choice.batch) for choice in taken if choice} == {(first, second), (other,)}


def test_many_producers_and_workers_lose_no_request_and_share_none() -> None:
    producers, each_puts = 6, 200
    requests = queue(PAIRS, max_requests=producers * each_puts)
    start = threading.Barrier(producers + 4)
    put: list[Pending] = []

    def produce(key: str) -> None:
        start.wait(PATIENCE_S)
        for number in range(each_puts):
            # Every tenth has expired before it comes.
            each = pending(key=key, expires_s=0.0 if number % 10 == 0 else None)
            put.append(each)
            assert requests.put(each)

    def work() -> list[Choice]:
        start.wait(PATIENCE_S)
        return drain(requests)

    workers = [background(work) for _ in range(4)]
    for production in [background(produce, "ab"[number % 2]) for number in range(producers)]:
        production.result(PATIENCE_S)
    requests.close()
    choices = [choice for worker in workers for choice in worker.result(PATIENCE_S)]
    gone = [each for choice in choices for each in (*choice.batch, *choice.expired)]
    assert len(gone) == len(put)
    assert set(gone) == set(put)
    assert len(requests) == 0
    assert all(len({each.batch_key for each in choice.batch}) <= 1 for choice in choices)


def test_requests_discarded_while_workers_take_are_gone_exactly_once() -> None:
    requests = queue(PAIRS, max_bytes=10**6)
    waiting = [pending(payload_bytes=1) for _ in range(500)]
    start = threading.Barrier(4)

    def cancel(mine: list[Pending]) -> None:
        start.wait(PATIENCE_S)
        for each in mine:
            requests.discard(each)

    def work() -> list[Choice]:
        start.wait(PATIENCE_S)
        return drain(requests)

    for each in waiting:
        requests.put(each)
    requests.close()
    cancels = [background(cancel, waiting[part::2]) for part in range(2)]
    workers = [background(work) for _ in range(2)]
    for each_cancel in cancels:
        each_cancel.result(PATIENCE_S)
    taken = [each for worker in workers for choice in worker.result(PATIENCE_S) for each in choice.batch]
    assert len(set(taken)) == len(taken)
    assert len(requests) == 0


def test_rows_that_are_limited_later_count_from_then_on() -> None:
    requests = queue(PATIENT_PAIRS, clock=lambda: 0.0)
    requests.put(pending())
    assert requests.take_now() is None
    requests.limit_rows({pending().batch_key: 1})
    choice = requests.take_now()
    assert choice is not None
    assert len(choice.batch) == 1
