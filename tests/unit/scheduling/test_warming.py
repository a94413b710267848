"""A warm-up ends when a whole pass has built nothing more, and says at what it failed if it cannot."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from tests.unit.builders import Clock, Events, echo_signature, raise_

from preheat.backend import (
    Buckets,
    Dimension,
    Outcome,
    Outside,
    Request,
    RequestSession,
    Response,
    Session,
    TensorSession,
)
from preheat.compilations import Compilation, CompilationKind, recording, report_compilation
from preheat.errors import ExecutionFailed, LoadFailed, reason_of
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.scheduling.execution import Executor
from preheat.scheduling.pacing import Pacer
from preheat.scheduling.padding import Padding
from preheat.scheduling.padding_check import PaddingCheck
from preheat.scheduling.warming import Warmup, WarmupReport
from preheat.scheduling.warmup import Sample
from preheat.telemetry.events import Compiled
from preheat.tensors import Array, Tensors

SIGNATURE = echo_signature(Dimension("length", 1, 64), max_batch_size=4)
BUCKETS = Buckets((1, 2, 4), {"length": (8,)})
SAMPLE = Sample("typical", {"x": np.ones(3, np.float32)}, rows=2, count=1)
LONG_SAMPLE = Sample("long", {"x": np.ones(9, np.float32)}, rows=2, count=1)
PASS = ["infer 4x8", "infer 2x8", "infer 1x8"]


def graph(what: str, *, cached: bool = False) -> Compilation:
    return Compilation(CompilationKind.GRAPH, what, cached=cached)


class Echo(TensorSession):
    """Echoes, notes the shapes it is run at, and before that calls ``do`` with them and how often each came before."""

    def __init__(self, do: Callable[[tuple[int, ...], int], object] = lambda _, __: None) -> None:
        self._do = do
        self.calls: list[str] = []

    def infer(self, inputs: Tensors) -> Tensors:
        return self._run("infer", inputs["x"])

    def infer_eagerly(self, inputs: Tensors) -> Tensors:
        return self._run("eager", inputs["x"])

    def _run(self, how: str, array: Array) -> Tensors:
        call = f"{how} {'x'.join(map(str, array.shape))}"
        times = self.calls.count(call)
        self.calls.append(call)
        self._do(array.shape, times)
        return {"y": array}


class Whole(RequestSession):
    """Sees requests whole, and counts them."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        self.seen.append(len(requests))
        return [Response({"y": each.inputs["x"]}) for each in requests]


def compiling(times: int, *, rows: Sequence[int] = (1, 2, 4), cached: bool = False) -> Echo:
    """A session that builds something in the first ``times`` runs of each batch size among ``rows``."""

    def compile_some(shape: tuple[int, ...], before: int) -> None:
        if before < times and shape[0] in rows:
            report_compilation(graph(f"graph for {shape[0]}", cached=cached))

    return Echo(compile_some)


def failing(error: BaseException, *, rows: Sequence[int] = (1, 2, 4)) -> Echo:
    """A session that fails with ``error`` at each batch size among ``rows``."""
    return Echo(lambda shape, _: raise_(error) if shape[0] in rows else None)


@dataclass(frozen=True, slots=True)
class Warming:
    """A warm-up to run, and what came of it."""

    buckets: Buckets = BUCKETS
    samples: Sequence[Sample] = ()
    check: PaddingCheck | None = None
    instance: int = 0
    eagerly: bool = False
    weighs: bool = False
    events: Events = field(default_factory=Events)

    def run(self, session: Session) -> WarmupReport:
        padding = Padding(SIGNATURE, self.buckets, {"x": 0.0})
        outside = self.buckets.outside
        executor = Executor("m", 1, signature=SIGNATURE, padding=padding, outside=outside, observer=self.events)
        warmup = Warmup("m/1", SIGNATURE, self.buckets, self.samples, executor, self.check, self.weighs)
        record = CompilationRecord("m", 1, self.instance, self.events)
        with recording(record.record):
            return warmup.run(session, record, instance=self.instance, eagerly=self.eagerly)

    def refusal(self, session: Session) -> str:
        with pytest.raises(LoadFailed) as caught:
            self.run(session)
        return str(caught.value)


def test_a_session_that_builds_nothing_is_run_once_in_every_bucket() -> None:
    session = Echo()
    report = Warming().run(session)
    assert session.calls == PASS
    assert [step.label for step in report.steps] == [f"batch {rows}, length 8" for rows in (4, 2, 1)]
    assert report.compilations == 0


@pytest.mark.parametrize("times", [1, 2, 5])
def test_passes_go_on_until_one_builds_nothing(times: int) -> None:
    session, warming = compiling(times), Warming()
    report = warming.run(session)
    assert session.calls == PASS * (times + 1)
    assert [step.number for step in report.steps] == [number for number in range(1, times + 2) for _ in PASS]
    assert report.compilations == 3 * times == len(warming.events.of(Compiled))
    assert not any(event.ready for event in warming.events.of(Compiled))


def test_one_bucket_that_builds_something_has_all_of_them_run_again() -> None:
    session = compiling(1, rows=[1])
    Warming().run(session)
    assert session.calls == PASS * 2


def test_a_report_says_at_which_step_what_was_built() -> None:
    report = Warming().run(compiling(1, rows=[2]))
    assert [(step.number, step.label, list(step.compilations)) for step in report.steps if step.compilations] == [
        (1, "batch 2, length 8", [graph("graph for 2")])
    ]
    assert report.seconds >= sum(step.seconds for step in report.steps)


def test_what_was_built_before_the_warm_up_is_no_reason_for_another_pass() -> None:
    record = CompilationRecord("m", 1, 0, Events())
    record.record(graph("opening"))
    padding = Padding(SIGNATURE, BUCKETS, {"x": 0.0})
    executor = Executor("m", 1, signature=SIGNATURE, padding=padding, observer=Events())
    report = Warmup("m/1", SIGNATURE, BUCKETS, (), executor).run(Echo(), record, instance=0, eagerly=False)
    assert report.compilations == 0


def test_a_session_that_goes_on_building_is_given_up_after_six_passes_by_bucket_and_what_it_built() -> None:
    session = compiling(99, rows=[2])
    assert Warming().refusal(session) == (
        "warm-up of m/1 does not come to an end: in pass 6, batch 2, length 8 still compiled graph for 2"
    )
    assert session.calls == PASS * 6


def test_a_sample_outside_every_bucket_that_runs_uncompiled_does_not_keep_the_warm_up_going() -> None:
    session = Echo()
    warming = Warming(replace(BUCKETS, outside=Outside.EAGER), [LONG_SAMPLE])
    report = warming.run(session)
    assert session.calls == [*PASS, "eager 2x9"]
    assert [each.kind for step in report.steps for each in step.compilations] == [CompilationKind.EAGER]


def test_what_goes_on_building_is_named_beside_what_runs_uncompiled() -> None:
    def build_always(shape: tuple[int, ...], _: int) -> None:
        if shape == (2, 9):
            report_compilation(graph("a kernel"))

    text = Warming(replace(BUCKETS, outside=Outside.EAGER), [LONG_SAMPLE]).refusal(Echo(build_always))
    assert text.endswith("in pass 6, sample 'long' still compiled a kernel")


@pytest.mark.parametrize("error", [ExecutionFailed("out of memory"), RuntimeError("out of memory"), SystemExit(1)])
def test_a_warm_up_that_fails_names_the_instance_the_bucket_and_how_far_it_came(error: BaseException) -> None:
    session = failing(error, rows=[2])
    assert Warming(instance=7).refusal(session) == (
        f"warm-up of m/1 failed at instance 7: batch 2, length 8 (2 of 3): {reason_of(error)}"
    )
    assert session.calls == PASS[:2]


def test_a_warm_up_that_fails_in_a_later_pass_fails_the_load_as_well() -> None:
    def fail_later(_: tuple[int, ...], before: int) -> None:
        report_compilation(graph("a kernel"))
        if before == 1:
            raise ExecutionFailed("out of memory")

    session = Echo(fail_later)
    assert "instance 0: batch 4, length 8 (1 of 3): out of memory" in Warming().refusal(session)
    assert session.calls == [*PASS, PASS[0]]


def test_a_defect_leaves_a_trace_in_the_log_and_an_error_of_the_model_none(caplog: pytest.LogCaptureFixture) -> None:
    for session in (failing(ExecutionFailed("out of memory")), failing(RuntimeError("a defect"))):
        Warming().refusal(session)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "warm-up of m/1 failed at instance 0: batch 4, length 8 (1 of 3)"
    ]


def test_an_answer_that_breaks_the_signature_fails_the_warm_up() -> None:
    class Short(TensorSession):
        def infer(self, inputs: Tensors) -> Tensors:
            return {"y": inputs["x"][:, :-1]}

    assert "output 'y' of model 'm' has shape [7]" in Warming().refusal(Short())


def test_a_session_that_sees_requests_whole_is_run_with_samples_only() -> None:
    session = Whole()
    report = Warming(Buckets((1, 2, 4)), [SAMPLE]).run(session)
    assert session.seen == [2]
    assert [step.label for step in report.steps] == ["sample 'typical'"]


def test_padding_is_tried_on_the_first_instance_before_anything_else() -> None:
    session = Echo()
    Warming(check=PaddingCheck("m", SIGNATURE, BUCKETS, {"x": 0.0}, {})).run(session)
    assert session.calls == ["infer 1x8", "infer 1x1", *PASS]


def test_padding_is_tried_without_compiling_where_the_model_can() -> None:
    session = Echo()
    Warming(check=PaddingCheck("m", SIGNATURE, BUCKETS, {"x": 0.0}, {}), eagerly=True).run(session)
    assert session.calls == ["eager 1x8", "eager 1x1", *PASS]


def test_padding_is_not_tried_on_other_instances() -> None:
    session = Echo()
    Warming(check=PaddingCheck("m", SIGNATURE, BUCKETS, {"x": 0.0}, {}), instance=1).run(session)
    assert session.calls == PASS


def test_padding_that_changes_answers_fails_the_load_before_anything_is_warmed() -> None:
    class Mean(Echo):
        def infer(self, inputs: Tensors) -> Tensors:
            return {"y": np.full_like(super().infer(inputs)["y"], inputs["x"].mean())}

    session = Mean()
    text = Warming(check=PaddingCheck("m", SIGNATURE, BUCKETS, {"x": 0.0}, {})).refusal(session)
    assert "output 'y' of length 1 padded to 8" in text
    assert session.calls == ["infer 1x8", "infer 1x1"]


def test_a_step_that_builds_leaves_a_line_that_tells_what_was_found_in_the_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def build(shape: tuple[int, ...], before: int) -> None:
        if shape[0] == 2 and not before:
            report_compilation(graph("a graph"))
            report_compilation(graph("another", cached=True))

    with caplog.at_level(logging.INFO):
        Warming(instance=1).run(Echo(build))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("m/1 instance 1: batch 2, length 8 (2 of 3), pass 1: ")
    assert line.endswith(" s, 1 compiled, 1 from the cache")


def rows_squared(shape: tuple[int, ...], _: int) -> None:
    """Take so long that each row of a batch takes longer than one of a smaller."""
    time.sleep(0.005 * shape[0] ** 2)


def test_a_warm_up_that_weighs_says_which_batches_do_not_pay() -> None:
    session = Echo(rows_squared)
    assert Warming(weighs=True).run(session).worthwhile == {(("x", (8,)),): 1}
    assert session.calls == PASS * 4


def test_what_a_batch_took_is_told_without_the_pauses_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("preheat.scheduling.pacing.time", clock)
    with Pacer(0.5, in_use=lambda: True).paced():
        report = Warming(weighs=True).run(Echo(lambda shape, _: clock.work(0.005 * shape[0])))
    assert [step.seconds for step in report.steps] == pytest.approx([0.02, 0.01, 0.005])
    assert sum(clock.pauses) == pytest.approx(0.035)


def test_one_that_does_not_weigh_says_nothing_and_runs_nothing_more() -> None:
    session = Echo(rows_squared)
    assert Warming().run(session).worthwhile == {}
    assert session.calls == PASS


def test_what_fails_when_it_is_timed_fails_the_load() -> None:
    def fail_late(shape: tuple[int, ...], before: int) -> None:
        rows_squared(shape, before)
        if before:
            raise ExecutionFailed("worn out")

    refusal = Warming(weighs=True).refusal(Echo(fail_late))
    assert refusal == "warm-up of m/1 failed when batches were timed: worn out"
