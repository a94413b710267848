"""Executing a batch: each gets its own rows, a failure is its own, and what is reported is what happened."""

import logging
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import Events, Replies, aligned, carrying, echo_signature, rows_of, spec, unpadded

from preheat.backend import Outcome, Request, RequestSession, Response, Session, Signature, TensorSession
from preheat.errors import (
    DeadlineExceeded,
    ExecutionFailed,
    InternalError,
    InvalidRequest,
    OutputTooLarge,
    RequestCancelled,
    RequestTimeout,
    ServingError,
)
from preheat.messages import InferResponse
from preheat.scheduling.execution import Executor
from preheat.scheduling.pending import Answer, Pending
from preheat.scheduling.warmup import WarmupBatch
from preheat.telemetry.events import BatchExecuted
from preheat.tensors import Array, Tensors

TWO_OUTPUTS = Signature((spec("x", 2),), (spec("y", 2), spec("z", 2)), max_batch_size=8)


class Computing(TensorSession):
    """Computes ``y``, and remembers the batches it saw."""

    def __init__(self, compute: Callable[[Array], Array] = np.negative) -> None:
        self._compute = compute
        self.seen: list[Array] = []

    def infer(self, inputs: Tensors) -> Tensors:
        self.seen.append(inputs["x"])
        return {"y": self._compute(inputs["x"])}


class Answering(RequestSession):
    """Answers with what ``answer`` says to its requests, and counts how often it was asked."""

    def __init__(self, answer: Callable[[Sequence[Request]], Sequence[Outcome]]) -> None:
        self._answer = answer
        self.executions = 0

    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        self.executions += 1
        return self._answer(requests)


class Sulking(Session):
    """Neither of the two kinds of session."""


class CopyingReplies:
    """Passes answers on as an encoder would: what they view is theirs only until this returns."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies

    def __call__(self, answer: Answer) -> Answer:
        assert isinstance(answer, InferResponse)
        outputs = tuple(each._replace(array=each.array.copy()) for each in answer.outputs)
        return self._replies(answer._replace(outputs=outputs))


def executor(
    signature: Signature | None = None,
    *,
    buckets: Sequence[int] = (),
    events: Events | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Executor:
    signature = signature or echo_signature()
    return Executor(
        "m",
        3,
        signature=signature,
        padding=unpadded(signature, rows=buckets),
        observer=events or Events(),
        clock=clock,
    )


def batch_of(*values: Sequence[float]) -> tuple[list[Pending], list[Replies]]:
    """A request for each of ``values``, with a row for each of its numbers."""
    replies = [Replies() for _ in values]
    return [carrying({"x": rows_of(*each)}, reply) for each, reply in zip(values, replies, strict=True)], replies


def output(replies: Replies, name: str = "y") -> list[list[float]]:
    response = replies.wait()
    assert isinstance(response, InferResponse), response
    values: list[list[float]] = next(each.array.tolist() for each in response.outputs if each.name == name)
    return values


def refuse_nines(batch: Array) -> Array:
    if (batch == 9).any():
        raise ExecutionFailed("no nines")
    return -batch


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_each_request_gets_the_answers_to_its_own_rows(values: list[list[int]], padded: bool) -> None:
    batch, replies = batch_of(*values)
    executor(buckets=(1, 4, 20) if padded else ()).execute(Computing(), batch)
    assert [output(each) for each in replies] == [[[-value, -value] for value in each] for each in values]


def test_an_answer_says_who_computed_what_for_whom() -> None:
    replies = Replies()
    executor().execute(Computing(), [carrying({"x": rows_of(1)}, replies, identity="seven")])
    response = replies.wait()
    assert isinstance(response, InferResponse)
    assert (response.model, response.version, response.id) == ("m", "3", "seven")


def test_a_batch_is_padded_to_its_bucket() -> None:
    session = Computing()
    executor(buckets=(1, 2, 4)).execute(session, batch_of([1, 2], [3])[0])
    assert [each.shape for each in session.seen] == [(4, 2)]


def test_a_lone_request_of_the_right_size_reaches_the_session_uncopied() -> None:
    session, array = Computing(), aligned(np.ones((2, 4096), np.float32))
    executor(buckets=(2,)).execute(session, [carrying({"x": array}, Replies())])
    assert session.seen[0] is array


@pytest.mark.parametrize("offset", range(1, 65, 7))
def test_sessions_get_arrays_that_every_engine_can_read(offset: int) -> None:
    """A client chooses where in a message its tensors lie."""
    values = rows_of(1, 2)
    lying = np.frombuffer(bytes(offset) + values.tobytes(), np.float32, offset=offset).reshape(values.shape)
    session, seen = Computing(), list[Array]()

    def answer(requests: Sequence[Request]) -> Sequence[Outcome]:
        seen.extend(each.inputs["x"] for each in requests)
        return [Response({"y": each.inputs["x"]}) for each in requests]

    for each in (session, Answering(answer)):
        executor().execute(each, [carrying({"x": lying}, Replies())])
    assert session.seen[0].ctypes.data % 64 == 0
    assert seen[0].flags.aligned
    for array in (*session.seen, *seen):
        np.testing.assert_array_equal(array, values)


def test_a_batch_is_put_where_the_one_before_it_was_and_answers_stay_apart() -> None:
    """The answer is a view of the question here, as an identity's is."""
    session, runner = Computing(lambda x: x), executor()
    first, first_replies = batch_of([1, 2], [3])
    second, second_replies = batch_of([4], [5, 6])
    copies = [CopyingReplies(each) for each in (*first_replies, *second_replies)]
    runner.execute(session, [carrying(each.inputs, copy) for each, copy in zip(first, copies, strict=False)])
    runner.execute(session, [carrying(each.inputs, copy) for each, copy in zip(second, copies[2:], strict=True)])
    assert session.seen[0].ctypes.data == session.seen[1].ctypes.data
    assert [output(each) for each in (*first_replies, *second_replies)] == [
        [[1, 1], [2, 2]], [[3, 3]], [[4, 4]], [[5, 5], [6, 6]],
    ]  # fmt: skip


def test_a_model_without_a_batch_axis_gets_the_tensors_of_one_request() -> None:
    session, replies = Computing(), Replies()
    # Two rows by its first axis, which is no batch here.
    lone = carrying({"x": rows_of(1, 2)}, replies, key=(("x", (2, 2)),))
    executor(echo_signature(2, 2, max_batch_size=0)).execute(session, [lone])
    assert [each.tolist() for each in session.seen] == [[[1, 1], [2, 2]]]
    assert output(replies) == [[-1, -1], [-2, -2]]


@pytest.mark.parametrize(("asked", "expected"), [((), ["y", "z"]), (("z",), ["z"]), (("z", "y"), ["z", "y"])])
def test_the_outputs_asked_for_are_given_in_the_order_asked(asked: Sequence[str], expected: list[str]) -> None:
    class Both(TensorSession):
        def infer(self, inputs: Tensors) -> Tensors:
            return {"z": inputs["x"], "y": inputs["x"]}

    replies = Replies()
    executor(TWO_OUTPUTS).execute(Both(), [carrying({"x": rows_of(1)}, replies, outputs=asked)])
    response = replies.wait()
    assert isinstance(response, InferResponse)
    assert [each.name for each in response.outputs] == expected


def test_a_cancelled_request_is_left_out_and_its_peers_are_answered() -> None:
    batch, replies = batch_of([1], [2], [3])
    batch[1].answer(RequestCancelled("gone"))
    session, events = Computing(), Events()
    executor(events=events).execute(session, batch)
    assert session.seen[0].tolist() == [[1, 1], [3, 3]]
    assert [output(replies[0]), output(replies[2])] == [[[-1, -1]], [[-3, -3]]]
    assert [event.rows for event in events.of(BatchExecuted)] == [2]


def test_a_batch_of_cancelled_requests_is_not_run() -> None:
    batch, _ = batch_of([1])
    batch[0].answer(RequestCancelled("gone"))
    session, events = Computing(), Events()
    executor(events=events).execute(session, batch)
    assert (session.seen, events.seen) == ([], [])


def test_a_request_cancelled_while_it_runs_harms_no_peer_and_is_not_counted() -> None:
    batch, replies = batch_of([1], [2, 3])

    def cancel_then_compute(rows: Array) -> Array:
        batch[0].answer(RequestCancelled("gone"))
        return -rows

    events = Events()
    executor(events=events).execute(Computing(cancel_then_compute), batch)
    assert isinstance(replies[0].wait(), RequestCancelled)
    assert output(replies[1]) == [[-2, -2], [-3, -3]]
    assert [(event.rows, len(event.arrived_s)) for event in events.of(BatchExecuted)] == [(2, 1)]


def test_a_reply_that_raises_leaves_its_peers_answered() -> None:
    def break_down(_: object) -> Answer:
        raise ConnectionError("the client is gone")

    batch, replies = batch_of([1])
    events = Events()
    executor(events=events).execute(Computing(), [carrying({"x": rows_of(0)}, break_down), *batch])
    assert output(replies[0]) == [[-1, -1]]
    assert [len(event.arrived_s) for event in events.of(BatchExecuted)] == [1]


def test_an_answer_that_became_an_error_on_its_way_counts_as_none() -> None:
    batch, replies = batch_of([1])
    events = Events()
    replying = carrying({"x": rows_of(0)}, lambda _: OutputTooLarge("no room"))
    executor(events=events).execute(Computing(), [replying, *batch])
    assert output(replies[0]) == [[-1, -1]]
    assert [len(event.arrived_s) for event in events.of(BatchExecuted)] == [1]


def test_one_requests_values_that_fail_a_batch_fail_only_that_request() -> None:
    batch, replies = batch_of([1], [9], [3])
    session, events = Computing(refuse_nines), Events()
    executor(events=events).execute(session, batch)
    assert [output(replies[0]), output(replies[2])] == [[[-1, -1]], [[-3, -3]]]
    failure = replies[1].wait()
    assert isinstance(failure, ExecutionFailed)
    assert str(failure) == "no nines"
    assert [event.rows for event in events.of(BatchExecuted)] == [1, 1]


def test_a_failed_batch_leaves_the_next_one_alone() -> None:
    session, runner = Computing(refuse_nines), executor()
    for values, fails in (([9], True), ([1], False)):
        batch, replies = batch_of(values)
        runner.execute(session, batch)
        assert isinstance(replies[0].wait(), ExecutionFailed) == fails


@pytest.mark.parametrize("defect", [RuntimeError("a secret path"), SystemExit(3), KeyError("y")])
def test_a_defect_of_the_model_is_logged_and_the_client_is_told_no_more_than_that(
    defect: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_: Array) -> Array:
        raise defect

    batch, replies = batch_of([1], [2])
    with caplog.at_level(logging.ERROR):
        executor().execute(Computing(break_down), batch)
    assert [str(each.wait()) for each in replies] == [str(InternalError())] * 2
    assert "model 'm' version 3" in caplog.text
    assert type(defect).__name__ in caplog.text


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda rows: rows[:-1], "has 0 rows for a batch of 1"),
        (lambda rows: rows.astype(np.float64), "is float64"),
        (lambda rows: rows[:, :1], "has shape [1]"),
    ],
)
def test_an_answer_that_breaks_the_signature_fails_the_request(
    compute: Callable[[Array], Array], expected: str
) -> None:
    batch, replies = batch_of([1], [2])
    executor().execute(Computing(compute), batch)
    for each in replies:
        failure = each.wait()
        assert isinstance(failure, ExecutionFailed)
        assert expected in str(failure)


def test_a_session_of_no_known_kind_fails_its_requests_and_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch, replies = batch_of([1])
    executor().execute(Sulking(), batch)
    assert isinstance(replies[0].wait(), InternalError)
    assert "Sulking is neither a TensorSession nor a RequestSession" in caplog.text


def negate(asked: Request) -> Outcome:
    return Response({"y": -asked.inputs["x"]})


def test_a_request_session_sees_each_request_whole() -> None:
    seen: list[Request] = []

    def answer(requests: Sequence[Request]) -> Sequence[Outcome]:
        seen.extend(requests)
        return [negate(each) for each in requests]

    batch, replies = batch_of([1, 2], [3])
    executor().execute(Answering(answer), batch)
    assert [(each.rows, each.inputs["x"].tolist()) for each in seen] == [(2, [[1, 1], [2, 2]]), (1, [[3, 3]])]
    assert [output(each) for each in replies] == [[[-1, -1], [-2, -2]], [[-3, -3]]]


@pytest.mark.parametrize("surplus", [-1, 1])
def test_outcomes_that_are_not_as_many_as_the_requests_fail_them_all(surplus: int) -> None:
    batch, replies = batch_of([1], [2])
    session = Answering(lambda requests: [negate(requests[0])] * (len(requests) + surplus))
    executor().execute(session, batch)
    for each in replies:
        failure = each.wait()
        assert isinstance(failure, ExecutionFailed)
        assert f"answered {2 + surplus} of 2 requests" in str(failure)


@pytest.mark.parametrize(
    ("outcome", "kind", "expected"),
    [
        (InvalidRequest("too long a text"), InvalidRequest, "too long a text"),
        (ExecutionFailed("out of memory"), ExecutionFailed, "out of memory"),
        (Response({}), ExecutionFailed, "gave no output 'y'"),
        (Response({"y": rows_of(1, 2)}), ExecutionFailed, "has 2 rows for a batch of 1"),
        (Response({"y": np.zeros((1, 2))}), ExecutionFailed, "is float64"),
        # What a careless model may return, against its types.
        (None, ExecutionFailed, "answered a request with a NoneType"),
        ({"y": rows_of(1)}, ExecutionFailed, "answered a request with a dict"),
        (Response(cast("Tensors", None)), ExecutionFailed, "m"),
        (Response({"y": cast("Array", [[1.0, 1.0]])}), ExecutionFailed, "output 'y' of model 'm' is no array: list"),
    ],
)
def test_one_bad_outcome_is_its_own_requests_error_alone(
    outcome: Outcome, kind: type[Exception], expected: str
) -> None:
    batch, replies = batch_of([1], [2], [3])
    session = Answering(lambda requests: [negate(requests[0]), outcome, negate(requests[2])])
    executor().execute(session, batch)
    assert [output(replies[0]), output(replies[2])] == [[[-1, -1]], [[-3, -3]]]
    failure = replies[1].wait()
    assert isinstance(failure, kind)
    assert expected in str(failure)


def test_a_request_session_may_leave_out_the_outputs_that_were_not_asked_for() -> None:
    session = Answering(
        lambda requests: [Response(dict.fromkeys(each.requested_outputs, each.inputs["x"])) for each in requests]
    )
    replies = Replies()
    executor(TWO_OUTPUTS).execute(session, [carrying({"x": rows_of(1)}, replies, outputs=("z",))])
    assert output(replies, "z") == [[1, 1]]


def test_the_parameters_of_a_response_go_along_with_it() -> None:
    session = Answering(lambda requests: [Response({"y": each.inputs["x"]}, {"tokens": 3}) for each in requests])
    batch, replies = batch_of([1])
    executor().execute(session, batch)
    response = replies[0].wait()
    assert isinstance(response, InferResponse)
    assert response.parameters == {"tokens": 3}


def test_a_request_session_that_fails_is_not_asked_twice_since_it_may_have_acted() -> None:
    def break_down(_: Sequence[Request]) -> Sequence[Outcome]:
        raise ExecutionFailed("half done")

    session = Answering(break_down)
    batch, replies = batch_of([1], [2])
    executor().execute(session, batch)
    assert [str(each.wait()) for each in replies] == ["half done"] * 2
    assert session.executions == 1


def test_a_request_that_expired_is_told_so() -> None:
    batch, replies = batch_of([1])
    executor().refuse_expired(batch[0])
    failure = replies[0].wait()
    assert isinstance(failure, RequestTimeout)
    assert str(failure) == "Request timeout expired"


@pytest.mark.parametrize(
    ("deadline_s", "expected"), [(7.0, DeadlineExceeded), (7.5, RequestTimeout), (None, RequestTimeout)]
)
def test_a_deadline_that_passed_in_the_queue_is_told_from_the_models_own_limit(
    deadline_s: float | None, expected: type[ServingError]
) -> None:
    replies = Replies()
    waiting = carrying({"x": rows_of(1)}, replies, deadline_s=deadline_s)
    executor(clock=lambda: 7.0).refuse_expired(waiting)
    assert type(replies.wait()) is expected


def test_the_report_adds_up() -> None:
    events = Events()
    ticks = iter([10.0, 11.0, 13.0, 17.0])
    batch, _ = batch_of([1, 2], [3])
    executor(buckets=(8,), events=events, clock=lambda: next(ticks)).execute(Computing(), batch)
    arrived_s = [each.arrived_s for each in batch]
    assert events.seen == [BatchExecuted("m", 3, 3, arrived_s, 10.0, 11.0, 13.0, 17.0)]


def test_a_batch_that_failed_is_not_reported_as_executed() -> None:
    events = Events()
    executor(events=events).execute(Computing(refuse_nines), batch_of([9])[0])
    assert events.seen == []


def test_warming_runs_the_path_of_real_batches() -> None:
    session = Computing()
    executor(buckets=(1, 4)).warm(session, WarmupBatch("batch 3", [{"x": rows_of(1)}] * 3))
    assert [each.shape for each in session.seen] == [(4, 2)]


def test_warming_a_model_without_a_batch_axis_runs_its_tensors_as_they_are() -> None:
    session = Computing()
    array = aligned(np.zeros(8192, np.float32))
    executor(echo_signature(8192, max_batch_size=0)).warm(session, WarmupBatch("one request", [{"x": array}]))
    assert session.seen[0] is array


def test_warming_finds_a_model_that_breaks_its_signature() -> None:
    with pytest.raises(ExecutionFailed, match="has 1 rows for a batch of 2"):
        executor().warm(Computing(lambda rows: rows[:1]), WarmupBatch("batch 2", [{"x": rows_of(1)}] * 2))


def test_warming_a_request_session_raises_the_error_it_answers_with() -> None:
    session = Answering(lambda requests: [negate(requests[0]), ExecutionFailed("no weights")])
    with pytest.raises(ExecutionFailed, match="no weights"):
        executor().warm(session, WarmupBatch("sample 's'", [{"x": rows_of(1)}] * 2))
