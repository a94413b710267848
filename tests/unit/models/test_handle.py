"""A version that serves: every request it takes is answered once, and unloading waits for the last."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.builders import (
    ECHO_CONFIG,
    PATIENCE_S,
    Events,
    Gate,
    PlannedBackend,
    Recording,
    Replies,
    background,
    life,
    loader_of,
    model_folder,
    raise_,
    request,
    rows_of,
    tensor,
)

from preheat.backend import Dimension, PartialConfig, TensorSpec
from preheat.errors import (
    DeadlineExceeded,
    ExecutionFailed,
    InternalError,
    InvalidRequest,
    OutputTooLarge,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    ServerStopping,
    ServingError,
)
from preheat.messages import InferRequest, InferResponse, TensorMetadata
from preheat.models.handle import Handle
from preheat.telemetry.events import BatchExecuted, FailureReason, RequestFailed
from preheat.tensors import DataType

HELD = 7.0


def asking(value: float, *, deadline_s: float | None = None) -> InferRequest:
    return request(tensor("x", rows_of(value)), deadline_s=deadline_s)


@contextmanager
def serving(
    repository: Path,
    model: Recording,
    *,
    events: Events | None = None,
    max_queue_requests: int = 100,
    config: str = ECHO_CONFIG,
) -> Iterator[Handle]:
    """A warm version of ``model``; closed when this ends."""
    backend = PlannedBackend(lambda _: model)
    loader = loader_of(backend, events=events, max_queue_requests=max_queue_requests)
    handle = loader.load(model_folder(repository, config=config), life()).handle
    model.calls.clear()
    try:
        yield handle
    finally:
        assert handle.drain(PATIENCE_S)
        assert handle.close(PATIENCE_S)


def submit(handle: Handle, value: float) -> Replies:
    replies = Replies()
    assert handle.submit(asking(value), replies) is not None
    return replies


def failures(events: Events) -> list[FailureReason]:
    assert all((event.model, event.version) == ("m", 1) for event in events.of(RequestFailed))
    return [event.reason for event in events.of(RequestFailed)]


def test_a_request_is_answered_by_the_model(tmp_path: Path) -> None:
    events = Events()
    with serving(tmp_path, Recording(), events=events) as handle:
        response = submit(handle, 1).wait()
        assert isinstance(response, InferResponse)
        assert response.outputs[0].array.tolist() == [[-1, -1]]
    assert (len(events.of(BatchExecuted)), failures(events)) == (1, [])


def test_a_malformed_request_raises_is_counted_and_gets_no_reply(tmp_path: Path) -> None:
    events, replies = Events(), Replies()
    with serving(tmp_path, Recording(), events=events) as handle:
        with pytest.raises(InvalidRequest, match="missing required"):
            handle.submit(request(), replies)
        assert handle.drain(0.0)
    assert (replies.answers, failures(events)) == ([], [FailureReason.OTHER])


def test_of_a_request_that_does_not_count_nothing_is_told(tmp_path: Path) -> None:
    events, failing = Events(), Recording()
    with serving(tmp_path, failing, events=events) as handle:
        with pytest.raises(InvalidRequest, match="missing required"):
            handle.submit(request(), Replies(), counts=False)
        answered, failed = Replies(), Replies()
        handle.submit(asking(1), answered, counts=False)
        assert isinstance(answered.wait(), InferResponse)
        failing.do = lambda _: raise_(ExecutionFailed("out of luck"))
        handle.submit(asking(1), failed, counts=False)
        assert isinstance(failed.wait(), ExecutionFailed)
    assert events.seen == []


def test_a_request_beyond_the_queue_is_answered_with_that_and_counted_as_rejected(tmp_path: Path) -> None:
    events, gate = Events(), Gate()
    with serving(tmp_path, Recording(do=gate), events=events, max_queue_requests=1) as handle:
        held = submit(handle, HELD)
        gate.await_entered()
        waits, refused = submit(handle, 1), submit(handle, 2)
        assert handle.waiting == 1
        assert isinstance(refused.wait(), QueueFull)
        gate.open()
        assert all(isinstance(each.wait(), InferResponse) for each in (held, waits))
    assert failures(events) == [FailureReason.REJECTED]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ExecutionFailed("out of memory"), FailureReason.BACKEND),
        (InternalError(), FailureReason.BACKEND),
        (InvalidRequest("too long"), FailureReason.OTHER),
        (QueueFull("full"), FailureReason.REJECTED),
        (RequestTimeout("late"), FailureReason.REJECTED),
        (OutputTooLarge("no room"), FailureReason.OTHER),
        (ServerStopping("stopping"), FailureReason.REJECTED),
        (RequestCancelled("gone"), FailureReason.CANCELED),
        (ServingError("a plugin's own"), FailureReason.BACKEND),
    ],
)
def test_each_failure_is_counted_under_its_reason(tmp_path: Path, error: ServingError, reason: FailureReason) -> None:
    events = Events()
    model = Recording(do=lambda batch: raise_(error) if (batch == 9).any() else None)
    with serving(tmp_path, model, events=events) as handle:
        assert submit(handle, 9).wait() is error
    assert failures(events) == [reason]


def test_a_request_that_expires_in_the_queue_is_refused(tmp_path: Path) -> None:
    events, replies = Events(), Replies()
    with serving(tmp_path, Recording(), events=events) as handle:
        handle.submit(asking(1, deadline_s=0.0), replies)
        assert isinstance(replies.wait(), DeadlineExceeded)
    assert failures(events) == [FailureReason.CANCELED]


def test_a_request_cancelled_in_the_queue_is_answered_so_and_never_run(tmp_path: Path) -> None:
    events, gate, gone = Events(), Gate(), Replies()
    model = Recording(do=gate)
    with serving(tmp_path, model, events=events) as handle:
        held = submit(handle, HELD)
        gate.await_entered()
        pending = handle.submit(asking(1), gone)
        assert pending is not None
        handle.cancel(pending)
        handle.cancel(pending)
        assert handle.waiting == 0
        assert isinstance(gone.wait(), RequestCancelled)
        gate.open()
        assert isinstance(held.wait(), InferResponse)
    assert model.names == ["infer 1", "close session", "close model"]
    assert failures(events) == [FailureReason.CANCELED]


def test_cancelling_one_caller_leaves_its_batch_peers_answered(tmp_path: Path) -> None:
    gate, gone = Gate(), Replies()
    model = Recording(do=gate)
    with serving(tmp_path, model, config=f"{ECHO_CONFIG} dynamic_batching {{}}") as handle:
        first = submit(handle, HELD)
        gate.await_entered()
        cancelled = handle.submit(asking(1), gone)
        peers = [submit(handle, value) for value in (2, 3)]
        assert cancelled is not None
        handle.cancel(cancelled)
        gate.open()
        answers = [each.wait() for each in (first, *peers)]
        assert all(isinstance(each, InferResponse) for each in answers)
    assert model.names[:2] == ["infer 1", "infer 2"]


def test_cancelling_what_was_answered_does_nothing(tmp_path: Path) -> None:
    events, replies = Events(), Replies()
    with serving(tmp_path, Recording(), events=events) as handle:
        pending = handle.submit(asking(1), replies)
        assert isinstance(replies.wait(), InferResponse)
        assert pending is not None
        handle.cancel(pending)
    assert (len(replies.answers), failures(events)) == (1, [])


def test_draining_waits_for_the_last_request_and_takes_no_more(tmp_path: Path) -> None:
    gate, late = Gate(), Replies()
    with serving(tmp_path, Recording(do=gate)) as handle:
        held = submit(handle, HELD)
        gate.await_entered()
        assert not handle.drain(0.0)
        draining = background(handle.drain)
        assert handle.submit(asking(1), late) is None
        assert not draining.done()
        gate.open()
        assert draining.result(PATIENCE_S)
        assert isinstance(held.wait(), InferResponse)
    assert late.answers == []


def test_while_callers_race_with_draining_each_is_answered_once_or_turned_away(tmp_path: Path) -> None:
    callers = 4
    start = threading.Barrier(callers + 1)
    with serving(tmp_path, Recording()) as handle:

        def call_until_turned_away() -> list[Replies]:
            taken: list[Replies] = []
            start.wait(PATIENCE_S)
            while handle.submit(asking(1), replies := Replies()) is not None:
                taken.append(replies)
            assert replies.answers == []
            return taken

        calling = [background(call_until_turned_away) for _ in range(callers)]
        start.wait(PATIENCE_S)
        assert handle.drain(PATIENCE_S)
        for caller in calling:
            for replies in caller.result(PATIENCE_S):
                assert len(replies.answers) == 1


def test_what_is_abandoned_is_answered_at_once_and_not_again(tmp_path: Path) -> None:
    gate, events = Gate(), Events()
    model = Recording(do=gate)
    with serving(tmp_path, model, events=events) as handle:
        executing = submit(handle, HELD)
        gate.await_entered()
        waiting = submit(handle, 1)
        assert not handle.drain(0.0)
        error = ServerStopping("time is up")
        assert handle.abandon(error) == 2
        assert [executing.wait(), waiting.wait()] == [error, error]
        assert handle.drain(0.0)
        gate.open()
    assert [len(executing.answers), len(waiting.answers)] == [1, 1]
    assert model.names == ["infer 1", "close session", "close model"]
    assert failures(events) == [FailureReason.REJECTED] * 2
    assert events.of(BatchExecuted) == []


def test_sessions_are_closed_before_their_model(tmp_path: Path) -> None:
    model = Recording()
    with serving(tmp_path, model, config=f"{ECHO_CONFIG} instance_group {{ count: 2 }}"):
        pass
    assert model.names == ["close session", "close session", "close model"]


def test_a_model_is_not_closed_under_a_session_that_is_busy(tmp_path: Path) -> None:
    gate = Gate()
    model = Recording(do=gate)
    with serving(tmp_path, model) as handle:
        submit(handle, HELD)
        gate.await_entered()
        assert not handle.close(0.0)
        assert model.names == ["infer 1"]
        gate.open()
    assert model.names[-2:] == ["close session", "close model"]


def test_metadata_shows_whole_shapes_and_the_versions_it_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, Recording()) as handle:
        metadata = handle.metadata([1, 3])
    assert (metadata.name, metadata.versions, metadata.platform) == ("m", ("1", "3"), "planned")
    assert metadata.inputs == (TensorMetadata("x", DataType.FP32, (-1, 2)),)
    assert metadata.outputs == (TensorMetadata("y", DataType.FP32, (-1, 2)),)


def test_metadata_of_a_model_without_a_batch_axis_adds_none_and_says_what_varies(tmp_path: Path) -> None:
    axes = (Dimension("seq", 1, 9), Dimension.fixed(2))
    artifact = PartialConfig((TensorSpec("x", DataType.FP32, axes),), (TensorSpec("y", DataType.FP32, axes),))
    loader = loader_of(PlannedBackend(lambda _: Recording(), artifact=artifact))
    handle = loader.load(model_folder(tmp_path, config='platform: "planned"'), life()).handle
    metadata = handle.metadata([1])
    handle.close()
    assert metadata.inputs == (TensorMetadata("x", DataType.FP32, (-1, 2)),)
    assert metadata.platform == "planned"
