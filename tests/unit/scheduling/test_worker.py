"""One instance, one thread: what warms is what serves, and nothing a model does ends it."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.unit.builders import (
    PATIENCE_S,
    Events,
    Gate,
    Recording,
    Replies,
    carrying,
    echo_signature,
    pending,
    raise_,
    rows_of,
    unpadded,
)

from preheat.backend import Buckets, Instance, Model, Session
from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat.errors import ExecutionFailed, InternalError, LoadFailed, RequestTimeout
from preheat.messages import InferResponse
from preheat.scheduling.batching import BatchLimits
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.scheduling.execution import Executor
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.warming import Warmup, WarmupReport, WarmupStep
from preheat.scheduling.worker import WarmUp, Worker
from preheat.telemetry.events import Compiled
from preheat.tensors import Array

SIGNATURE = echo_signature(max_batch_size=4)
REPORT = WarmupReport(seconds=2.5, steps=[WarmupStep("batch 1", 1, 0.0, 0, [])])


def executor() -> Executor:
    return Executor("m", 1, signature=SIGNATURE, padding=unpadded(SIGNATURE), observer=Events())


def warm_buckets(session: Session, record: CompilationRecord) -> WarmupReport:
    warmup = Warmup("m/1", SIGNATURE, Buckets((1, 2, 4)), (), executor())
    return warmup.run(session, record, instance=0, eagerly=False)


@contextmanager
def started(
    model: Model, *, workers: int = 1, warm_up: WarmUp = lambda _, __: REPORT, events: Events | None = None
) -> Iterator[tuple[list[Worker], RequestQueue]]:
    """Workers on one queue; they have ended when this ends."""
    queue = RequestQueue(BatchLimits(max_rows=4), max_requests=100, max_bytes=100)
    made = [
        Worker(
            model,
            Instance(ordinal, "cpu", 1),
            name=f"m/1 instance {ordinal}",
            warm_up=warm_up,
            record=CompilationRecord("m", 1, ordinal, events or Events()),
            executor=executor(),
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


def test_a_worker_that_was_never_started_has_ended() -> None:
    # As when the process may have no more threads: whoever clears up joins all.
    queue = RequestQueue(BatchLimits(max_rows=4), max_requests=100, max_bytes=100)
    record = CompilationRecord("m", 1, 0, Events())
    instance = Instance(0, "cpu", 1)
    worker = Worker(
        Recording(), instance, name="m", warm_up=warm_buckets, record=record, executor=executor(), queue=queue
    )
    assert worker.join(0.0)


def ask(queue: RequestQueue, value: float) -> Replies:
    replies = Replies()
    assert queue.put(carrying({"x": rows_of(value)}, replies))
    return replies


def test_one_thread_of_its_own_opens_warms_serves_and_closes_a_session() -> None:
    model = Recording()
    with started(model, warm_up=warm_buckets) as ((worker,), queue):
        assert [step.label for step in worker.warm.result(PATIENCE_S).steps] == ["batch 4", "batch 2", "batch 1"]
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


@pytest.mark.parametrize("error", [LoadFailed("out of memory"), RuntimeError("a defect"), SystemExit(1)])
def test_a_warm_up_that_fails_closes_the_session_and_says_why(error: BaseException) -> None:
    def fail(_: Session, __: CompilationRecord) -> WarmupReport:
        raise error

    model = Recording()
    with started(model, warm_up=fail) as ((worker,), _):
        assert worker.warm.exception(PATIENCE_S) is error
        assert worker.join(PATIENCE_S)
    assert model.names == ["open", "close session"]


def test_what_an_instance_compiles_is_told_apart_by_instance_and_by_whether_it_was_ready() -> None:
    def compile_something(what: str) -> None:
        report_compilation(Compilation(CompilationKind.GRAPH, what))

    def warm(_: Session, record: CompilationRecord) -> WarmupReport:
        compile_something("warming")
        assert [each.what for each in record.seen] == ["opening", "warming"]
        return REPORT

    events = Events()
    model = Recording(at_open=lambda _: compile_something("opening"), do=lambda _: compile_something("serving"))
    with started(model, warm_up=warm, events=events, workers=2) as (workers, queue):
        assert [worker.warm.result(PATIENCE_S) for worker in workers] == [REPORT] * 2
        # Nobody listens here: it is no instance's thread.
        compile_something("elsewhere")
        assert isinstance(ask(queue, 1).wait(), InferResponse)
    compiled = events.of(Compiled)
    assert sorted((each.instance, each.what) for each in compiled if not each.ready) == [
        (instance, what) for instance in (0, 1) for what in ("opening", "warming")
    ]
    assert [each.what for each in compiled if each.ready] == ["serving"]


def test_an_instance_is_ready_before_anyone_can_know_it() -> None:
    records: list[CompilationRecord] = []

    def warm(_: Session, record: CompilationRecord) -> WarmupReport:
        records.append(record)
        assert not record.ready
        return REPORT

    ready: list[bool] = []
    gate = threading.Event()
    model = Recording(at_open=lambda _: gate.wait(PATIENCE_S))
    with started(model, warm_up=warm) as ((worker,), _):
        # Called on the instance's thread, by the very call that makes the result known.
        worker.warm.add_done_callback(lambda _: ready.append(records[0].ready))
        gate.set()
        worker.warm.result(PATIENCE_S)
    assert ready == [True]


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


class Lendable(Recording):
    """A model whose sessions any thread may run."""

    def open(self, instance: Instance) -> Session:
        session = super().open(instance)
        session.any_thread = True
        return session


def reporting(report: WarmupReport) -> WarmUp:
    return lambda _, __: report


def put_quietly(queue: RequestQueue, *values: float) -> list[Replies]:
    """Requests that no worker is told of."""
    replies = [Replies() for _ in values]
    for value, reply in zip(values, replies, strict=True):
        assert queue.put(carrying({"x": rows_of(value)}, reply), wake=False)
    return replies


def test_quick_batches_run_on_the_thread_that_received_them() -> None:
    model = Lendable()
    with started(model) as ((worker,), queue):
        worker.warm.result(PATIENCE_S)
        replies = put_quietly(queue, 1, 2)
        assert worker.run_here()
        assert all(isinstance(each.wait(), InferResponse) for each in replies)
        assert not len(queue)
        assert {thread for name, thread in model.calls if name.startswith("infer")} == {threading.get_ident()}
    assert model.names[-1] == "close session"
    assert not worker.run_here()


def test_a_session_that_belongs_to_its_thread_is_not_run_on_another() -> None:
    with started(Recording()) as ((worker,), queue):
        worker.warm.result(PATIENCE_S)
        (replies,) = put_quietly(queue, 1)
        assert not worker.run_here()
        assert not replies.answers
        queue.wake()
        assert isinstance(replies.wait(), InferResponse)


def test_a_session_that_is_not_warm_yet_is_not_run_on_another_thread() -> None:
    gate = Gate()

    def warm_slowly(_: Session, __: CompilationRecord) -> WarmupReport:
        gate(rows_of(7))
        return REPORT

    with started(Lendable(), warm_up=warm_slowly) as ((worker,), queue):
        gate.await_entered()
        (replies,) = put_quietly(queue, 1)
        assert not worker.run_here()
        gate.open()
        queue.wake()
        assert isinstance(replies.wait(), InferResponse)


def test_one_thread_at_a_time_runs_a_session() -> None:
    gate = Gate()
    with started(Lendable(do=gate)) as ((worker,), queue):
        worker.warm.result(PATIENCE_S)
        slow = ask(queue, 7)
        gate.await_entered()
        (replies,) = put_quietly(queue, 1)
        assert worker.busy
        # Who has the session takes what was put meanwhile, told of it or not.
        assert worker.run_here()
        assert not replies.answers
        gate.open()
        assert isinstance(replies.wait(), InferResponse)
        assert isinstance(slow.wait(), InferResponse)


def test_a_model_that_has_become_slow_runs_on_its_own_thread_again() -> None:
    model = Lendable(do=lambda _: time.sleep(0.05))
    with started(model) as ((worker,), queue):
        worker.warm.result(PATIENCE_S)
        for value in range(3):
            (replies,) = put_quietly(queue, value)
            if not worker.run_here():
                queue.wake()
            assert isinstance(replies.wait(), InferResponse)
    own = {thread for name, thread in model.calls if name == "open"}
    threads = [thread for name, thread in model.calls if name.startswith("infer")]
    assert threads[0] == threading.get_ident()
    assert {*threads[1:]} == own


def test_a_model_that_was_slow_at_warm_up_runs_on_its_own_thread_from_the_first_request_on() -> None:
    slow = WarmupReport(steps=[WarmupStep("batch 1", 1, 0.05, 0, []), WarmupStep("batch 2", 1, 0.0, 0, [])])
    for report in (slow, WarmupReport()):
        with started(Lendable(), warm_up=reporting(report)) as ((worker,), queue):
            worker.warm.result(PATIENCE_S)
            (replies,) = put_quietly(queue, 1)
            assert not worker.run_here()
            queue.wake()
            assert isinstance(replies.wait(), InferResponse)


def test_after_a_failure_of_the_scheduler_a_worker_is_to_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with started(Lendable()) as ((worker,), queue):
        worker.warm.result(PATIENCE_S)
        (replies,) = put_quietly(queue, 1)
        with monkeypatch.context() as patch:
            patch.setattr(queue, "take_now", lambda: raise_(RuntimeError("a defect")))
            assert not worker.run_here()
        assert isinstance(replies.wait(), InternalError)


def test_what_is_compiled_on_another_thread_is_the_instances() -> None:
    events = Events()
    compilation = Compilation(CompilationKind.GRAPH, "x[1,2]", 0.1)
    with started(Lendable(do=lambda _: report_compilation(compilation)), events=events) as ((worker,), queue):
        worker.warm.result(PATIENCE_S)
        (replies,) = put_quietly(queue, 1)
        assert worker.run_here()
        replies.wait()
    assert [each.what for each in events.of(Compiled)] == ["x[1,2]"]


def test_a_batch_that_is_to_wait_for_more_is_left_to_its_worker() -> None:
    limits = BatchLimits(4, joins=True, max_delay_s=1.0)
    queue = RequestQueue(limits, max_requests=100, max_bytes=100, clock=lambda: 0.5)
    put_quietly(queue, 1)
    assert queue.take_now() is None
    put_quietly(queue, 2, 3, 4)
    choice = queue.take_now()
    assert choice is not None
    assert len(choice.batch) == 4
