"""One instance, one thread: what warms is what serves, and nothing a model does ends it."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from tests.unit.builders import (
    PATIENCE_S,
    Events,
    Recording,
    Replies,
    carrying,
    echo_signature,
    pending,
    raise_,
    rows_of,
)

from preheat.backend import Instance, Model, Session
from preheat.errors import ExecutionFailed, InternalError, LoadFailed, RequestTimeout, reason_of
from preheat.messages import InferResponse
from preheat.scheduling.batching import BatchLimits
from preheat.scheduling.execution import Executor
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.warmup import WarmupBatch, plan_warmup
from preheat.scheduling.worker import WarmupPlan, Worker
from preheat.tensors import Array

SIGNATURE = echo_signature(max_batch_size=4)
BUCKETS = (1, 2, 4)


def plan_buckets(_: Session) -> Sequence[WarmupBatch]:
    return plan_warmup(SIGNATURE, BUCKETS, ())


@contextmanager
def started(
    model: Model, *, workers: int = 1, plan: WarmupPlan = lambda _: ()
) -> Iterator[tuple[list[Worker], RequestQueue]]:
    """Workers on one queue; they have ended when this ends."""
    queue = RequestQueue(BatchLimits(max_rows=4), max_requests=100, max_bytes=100)
    executor = Executor("m", 1, signature=SIGNATURE, buckets=(), observer=Events())
    made = [
        Worker(
            model,
            Instance(ordinal, "cpu", 1),
            name=f"m/1 instance {ordinal}",
            plan=plan,
            executor=executor,
            queue=queue,
        )
        for ordinal in range(workers)
    ]
    for worker in made:
        worker.start()
    try:
        yield made, queue
    finally:
        queue.close()
        assert all(worker.join(PATIENCE_S) for worker in made)


def ask(queue: RequestQueue, value: float) -> Replies:
    replies = Replies()
    assert queue.put(carrying({"x": rows_of(value)}, replies))
    return replies


def test_one_thread_of_its_own_opens_warms_serves_and_closes_a_session() -> None:
    model = Recording()
    with started(model, plan=plan_buckets) as ((worker,), queue):
        assert worker.warm.result(PATIENCE_S) >= 0
        assert isinstance(ask(queue, 1).wait(), InferResponse)
    assert model.names == ["open", "infer 4", "infer 2", "infer 1", "infer 1", "close session"]
    (thread,) = {thread for _, thread in model.calls}
    assert thread != threading.get_ident()


def test_instances_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2)
    with started(Recording(do=lambda _: meeting.wait(PATIENCE_S)), workers=2) as (_, queue):
        answers = [ask(queue, value).wait for value in (1, 2)]
        assert all(isinstance(wait(), InferResponse) for wait in answers)


@pytest.mark.parametrize("error", [LoadFailed("no weights"), RuntimeError("no device"), SystemExit(1)])
def test_a_session_that_cannot_be_opened_ends_its_worker_and_says_why(error: BaseException) -> None:
    model = Recording(at_open=lambda _: raise_(error))
    with started(model) as ((worker,), _):
        assert worker.warm.exception(PATIENCE_S) is error
        assert worker.join(PATIENCE_S)
    assert model.names == ["open"]


@pytest.mark.parametrize("error", [ExecutionFailed("out of memory"), RuntimeError("out of memory"), SystemExit(1)])
def test_a_warm_up_that_fails_names_the_instance_and_the_bucket_and_closes_the_session(error: BaseException) -> None:
    model = Recording(do=lambda rows: raise_(error) if len(rows) == 2 else None)
    with started(model, plan=plan_buckets) as ((worker,), _):
        failure = worker.warm.exception(PATIENCE_S)
        assert worker.join(PATIENCE_S)
    assert isinstance(failure, LoadFailed)
    assert str(failure) == f"warm-up of m/1 instance 0 failed at batch 2: {reason_of(error)}"
    assert model.names == ["open", "infer 4", "infer 2", "close session"]


def test_a_warm_up_that_cannot_be_planned_fails_the_load() -> None:
    model = Recording()
    with started(model, plan=lambda _: [][1]) as ((worker,), _):
        assert isinstance(worker.warm.exception(PATIENCE_S), IndexError)
    assert model.names == ["open", "close session"]


@pytest.mark.parametrize("error", [ExecutionFailed("no nines"), RuntimeError("a defect"), SystemExit(1)])
def test_a_worker_outlives_whatever_its_session_raises(error: BaseException) -> None:
    model = Recording(do=lambda rows: raise_(error) if (rows == 9).any() else None)
    with started(model) as (_, queue):
        for _ in range(3):
            assert isinstance(ask(queue, 9).wait(), ExecutionFailed | InternalError)
            assert isinstance(ask(queue, 1).wait(), InferResponse)
    assert {thread for _, thread in model.calls} == {model.calls[0][1]}


def test_an_expired_request_is_refused_without_being_run() -> None:
    model, replies = Recording(), Replies()
    with started(model) as (_, queue):
        queue.put(pending(expires_s=0.0, reply=replies))
        assert isinstance(replies.wait(), RequestTimeout)
    assert model.names == ["open", "close session"]


def test_what_waits_when_the_queue_closes_is_still_answered() -> None:
    gate = threading.Event()
    with started(Recording(do=lambda _: gate.wait(PATIENCE_S))) as (_, queue):
        answers = [ask(queue, value) for value in range(3)]
        queue.close()
        gate.set()
        assert all(isinstance(each.wait(), InferResponse) for each in answers)


def test_joining_a_busy_worker_gives_up_after_the_time_it_was_given() -> None:
    gate, entered = threading.Event(), threading.Event()

    def hang(_: Array) -> None:
        entered.set()
        gate.wait(PATIENCE_S)

    with started(Recording(do=hang)) as ((worker,), queue):
        ask(queue, 1)
        assert entered.wait(PATIENCE_S)
        queue.close()
        assert not worker.join(0.0)
        gate.set()
        assert worker.join(PATIENCE_S)


def test_a_session_that_cannot_close_is_logged_and_its_thread_ends(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.ERROR),
        started(Recording(at_close=lambda: raise_(RuntimeError("stuck")))) as ((worker,), queue),
    ):
        queue.close()
        assert worker.join(PATIENCE_S)
    assert "closing m/1 instance 0 failed" in caplog.text
