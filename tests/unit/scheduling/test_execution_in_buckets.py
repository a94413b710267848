"""Batches of requests of many sizes: padded to a bucket where one holds them, and as the model says where none does."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from tests.unit.builders import Events, Replies, carrying, echo_signature

from preheat.backend import Buckets, Dimension, Outside, TensorSession
from preheat.compilations import Compilation, CompilationKind, recording
from preheat.errors import ExecutionFailed
from preheat.messages import InferResponse
from preheat.scheduling.execution import Executor
from preheat.scheduling.padding import Padding
from preheat.scheduling.warmup import WarmupBatch
from preheat.telemetry.events import BatchExecuted
from preheat.tensors import Array, Tensors

LENGTH = Dimension("length")


class Noting(TensorSession):
    """Negates; notes how it was called, and with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def infer(self, inputs: Tensors) -> Tensors:
        return self._run("infer", inputs["x"])

    def infer_eagerly(self, inputs: Tensors) -> Tensors:
        return self._run("infer_eagerly", inputs["x"])

    def _run(self, how: str, array: Array) -> Tensors:
        self.calls.append((how, array.tolist()))
        if (array == 9).any():
            raise ExecutionFailed("no nines")
        return {"y": -array}


class Serving:
    """An executor, what it ran and what came of that."""

    def __init__(
        self, outside: Outside = Outside.REFUSE, *, max_batch_size: int = 4, rows: tuple[int, ...] = (1, 4)
    ) -> None:
        self.session = Noting()
        self.events = Events()
        self.compilations: list[Compilation] = []
        self._lead = int(max_batch_size > 0)
        signature = echo_signature(LENGTH, max_batch_size=max_batch_size)
        self._padding = Padding(signature, Buckets(rows, {"length": (2, 4)}, outside), {"x": 0.0})
        ticks = itertools.count()
        self.executor = Executor(
            "m",
            1,
            signature=signature,
            padding=self._padding,
            outside=outside,
            observer=self.events,
            clock=lambda: float(next(ticks)),
        )

    def answers(self, *values: Sequence[float]) -> list[object]:
        """Run a request of one row for each of ``values`` as a batch; what each is answered, or its error's text."""
        asked = [(self._inputs(each), Replies()) for each in values]
        batch = [carrying(inputs, replies, key=self._padding.key(inputs)) for inputs, replies in asked]
        with recording(self.compilations.append):
            self.executor.execute(self.session, batch)
        answers = [replies.wait() for _, replies in asked]
        return [each.outputs[0].array.tolist() if isinstance(each, InferResponse) else str(each) for each in answers]

    def _inputs(self, values: Sequence[float]) -> Tensors:
        array = np.array(values, np.float32)
        return {"x": array[np.newaxis] if self._lead else array}


def test_requests_of_many_sizes_share_a_batch_and_each_is_answered_at_its_own() -> None:
    serving = Serving()
    answers = serving.answers([1, 2, 3], [4, 5, 6, 7], [8, 8, 8])
    assert serving.session.calls == [("infer", [[1, 2, 3, 0], [4, 5, 6, 7], [8, 8, 8, 0], [1, 2, 3, 0]])]
    assert answers == [[[-1, -2, -3]], [[-4, -5, -6, -7]], [[-8, -8, -8]]]
    assert [event.rows for event in serving.events.of(BatchExecuted)] == [3]
    assert serving.compilations == []


def test_a_model_without_a_batch_axis_is_padded_and_cut_as_well() -> None:
    serving = Serving(max_batch_size=0, rows=())
    answers = serving.answers([1, 2, 3])
    assert serving.session.calls == [("infer", [1, 2, 3, 0])]
    assert answers == [[-1, -2, -3]]


def test_a_batch_that_failed_is_run_again_one_by_one_in_the_same_bucket() -> None:
    serving = Serving()
    answers = serving.answers([1, 2, 3], [9, 9, 9])
    assert [call for _, call in serving.session.calls[1:]] == [[[1, 2, 3, 0]], [[9, 9, 9, 0]]]
    assert answers == [[[-1, -2, -3]], "no nines"]


def test_a_size_outside_every_bucket_runs_eagerly_without_any_padding_and_is_stated() -> None:
    serving = Serving(Outside.EAGER)
    answers = serving.answers([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert serving.session.calls == [("infer_eagerly", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])]
    assert answers == [[[-1, -2, -3, -4, -5]], [[-5, -4, -3, -2, -1]]]
    (stated,) = serving.compilations
    assert (stated.kind, stated.what, stated.cached) == (CompilationKind.EAGER, "x [2, 5]", False)
    assert stated.seconds > 0


def test_a_size_that_a_bucket_holds_does_not_run_eagerly() -> None:
    serving = Serving(Outside.EAGER)
    serving.answers([1, 2, 3], [3, 2, 1])
    assert [how for how, _ in serving.session.calls] == ["infer"]
    assert serving.compilations == []


def test_a_size_outside_every_bucket_may_be_compiled_for_at_its_own_size_and_a_bucket_of_rows() -> None:
    serving = Serving(Outside.COMPILE)
    answers = serving.answers([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert serving.session.calls == [("infer", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])]
    assert answers == [[[-1, -2, -3, -4, -5]], [[-5, -4, -3, -2, -1]]]
    # What it compiles, the backend states.
    assert serving.compilations == []


def test_an_engine_that_does_not_specialize_has_sizes_padded_and_rows_not() -> None:
    serving = Serving(rows=())
    serving.answers([1, 2, 3], [3, 2, 1, 0], [1, 1, 1])
    assert serving.session.calls == [("infer", [[1, 2, 3, 0], [3, 2, 1, 0], [1, 1, 1, 0]])]


@pytest.mark.parametrize(
    ("key", "expected"), [((("x", (4,)),), [[1, 2, 0, 0]] * 4), (None, [[1, 2]] * 4), ((("x", (2,)),), [[1, 2]] * 4)]
)
def test_warming_pads_to_the_bucket_it_is_to_warm_or_else_to_that_of_the_sample(
    key: tuple[tuple[str, tuple[int, ...]], ...] | None, expected: list[list[float]]
) -> None:
    serving = Serving()
    part = {"x": np.array([[1, 2]], np.float32)}
    serving.executor.warm(serving.session, WarmupBatch("batch 3", [part] * 3, key))
    assert serving.session.calls == [("infer", expected)]


def test_a_session_that_says_nothing_of_running_eagerly_does_not() -> None:
    class Plain(TensorSession):
        def infer(self, inputs: Tensors) -> Tensors:
            return inputs

    with pytest.raises(NotImplementedError, match=r"^Plain does not run eagerly$"):
        Plain().infer_eagerly({})
