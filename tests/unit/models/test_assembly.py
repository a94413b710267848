"""What a configuration says of buckets reaches the model, its warm-up, its requests and its batches."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.unit.builders import (
    PATIENCE_S,
    Events,
    PlannedBackend,
    Replies,
    life,
    loader_of,
    model_folder,
    parameters_text,
    request,
    tensor,
    threads,
)

from preheat.backend import Buckets, Instance, Model, ModelSource, Outside, Session, TensorSession
from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat.errors import InvalidConfig, InvalidRequest, LoadFailed
from preheat.messages import InferResponse
from preheat.models.loader import Loaded
from preheat.telemetry.events import Compiled
from preheat.tensors import Array, Tensors

CONFIG = """
backend: "planned"
max_batch_size: 2
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
"""
PARAMETERS = {
    "preheat.shape.x": "length",
    "preheat.shape.y": "length",
    "preheat.buckets.length": "4,8",
    "preheat.pad.x": "0",
}
SAMPLE = """
model_warmup { name: "s" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3 ] zero_data: true } } }
"""
WARM = ["2x8", "2x4", "1x8", "1x4"]


class Computing(Model):
    """A model whose sessions compute ``y`` of ``x``, noting the shapes they see."""

    def __init__(
        self, compute: Callable[[Array], Array] = np.negative, *, specializes: bool = True, eagerly: bool = False
    ) -> None:
        self.specializes_on_shape = specializes
        self.runs_eagerly = eagerly
        self.compute = compute
        self.seen: list[str] = []
        self.closed = False

    def open(self, instance: Instance) -> Session:  # noqa: ARG002 - the same everywhere
        return _Session(self)

    def close(self) -> None:
        self.closed = True


class _Session(TensorSession):
    def __init__(self, model: Computing) -> None:
        self._model = model

    def infer(self, inputs: Tensors) -> Tensors:
        return self._run("", inputs["x"])

    def infer_eagerly(self, inputs: Tensors) -> Tensors:
        return self._run("eager ", inputs["x"])

    def _run(self, how: str, array: Array) -> Tensors:
        self._model.seen.append(how + "x".join(map(str, array.shape)))
        return {"y": self._model.compute(array)}


def load(
    repository: Path,
    model: Computing,
    parameters: Mapping[str, str] = PARAMETERS,
    *,
    config: str = CONFIG,
    events: Events | None = None,
    sources: list[ModelSource] | None = None,
) -> Loaded:
    def make(source: ModelSource) -> Model:
        if sources is not None:
            sources.append(source)
        return model

    folder = model_folder(repository, config=config + parameters_text(parameters))
    return loader_of(PlannedBackend(make), events=events).load(folder, life())


def ask(loaded: Loaded, *values: float) -> object:
    """What a request of one row is answered."""
    replies = Replies()
    loaded.handle.submit(request(tensor("x", np.array([values], np.float32))), replies)
    answer = replies.wait()
    return answer.outputs[0].array.tolist() if isinstance(answer, InferResponse) else answer


def close(loaded: Loaded) -> None:
    assert loaded.handle.drain(PATIENCE_S)
    assert loaded.handle.close(PATIENCE_S)


def test_every_bucket_is_warmed_and_requests_run_in_the_one_that_holds_them(tmp_path: Path) -> None:
    model = Computing()
    loaded = load(tmp_path, model)
    assert model.seen == ["1x4", "1x1", "1x8", "1x5", *WARM]
    model.seen.clear()
    assert [ask(loaded, 1, 2, 3), ask(loaded, 1, 2, 3, 4, 5)] == [[[-1, -2, -3]], [[-1, -2, -3, -4, -5]]]
    assert model.seen == ["1x4", "1x8"]
    with pytest.raises(InvalidRequest, match="beyond every bucket: 4, 8"):
        ask(loaded, *range(9))
    close(loaded)


def test_a_model_that_does_not_specialize_has_sizes_padded_and_rows_not(tmp_path: Path) -> None:
    model, replies = Computing(specializes=False), Replies()
    loaded = load(tmp_path, model, {**PARAMETERS, "preheat.buckets": "2"})
    model.seen.clear()
    loaded.handle.submit(request(tensor("x", np.ones((1, 3), np.float32))), replies)
    replies.wait()
    close(loaded)
    assert model.seen == ["1x4"]


def test_the_backend_is_told_the_buckets_and_the_completed_configuration(tmp_path: Path) -> None:
    sources: list[ModelSource] = []
    close(load(tmp_path, Computing(eagerly=True), {**PARAMETERS, "preheat.outside_buckets": "eager"}, sources=sources))
    (source,) = sources
    assert source.buckets == Buckets((1, 2), {"length": (4, 8)}, Outside.EAGER)
    assert source.config["name"] == "m"
    assert source.config["max_batch_size"] == 2


def test_a_model_that_runs_eagerly_takes_sizes_outside_every_bucket_where_it_is_told_to(tmp_path: Path) -> None:
    model, events = Computing(eagerly=True), Events()
    loaded = load(tmp_path, model, {**PARAMETERS, "preheat.outside_buckets": "eager"}, events=events)
    assert model.seen[:2] == ["eager 1x4", "eager 1x1"]
    assert ask(loaded, *range(9)) == [[-float(value) for value in range(9)]]
    close(loaded)
    assert model.seen[-1] == "eager 1x9"
    assert [(event.kind, event.ready) for event in events.of(Compiled)] == [("eager", True)]


def test_a_model_that_cannot_run_eagerly_is_refused_where_it_is_told_to_and_freed(tmp_path: Path) -> None:
    model, before = Computing(), threads()
    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path, model, {**PARAMETERS, "preheat.outside_buckets": "eager"})
    assert str(caught.value) == (
        f"{tmp_path}/m/config.pbtxt: parameters: preheat.outside_buckets: eager: backend 'planned' runs only what it "
        "has built; set refuse or compile"
    )
    assert (model.closed, model.seen) == (True, [])
    assert threads() <= before


def average(array: Array) -> Array:
    """Takes padding for data."""
    return np.broadcast_to(array.mean(-1, keepdims=True), array.shape)


def test_a_model_that_takes_padding_for_data_is_refused_and_freed(tmp_path: Path) -> None:
    model, before = Computing(average), threads()
    with pytest.raises(
        LoadFailed, match=r"^padding changes the answer: output 'y' of length 1 padded to 4 differs by 75"
    ):
        load(tmp_path, model)
    assert model.closed
    assert threads() <= before


def test_padding_may_change_answers_by_as_much_as_the_configuration_says(tmp_path: Path) -> None:
    close(load(tmp_path, Computing(average), {**PARAMETERS, "preheat.padding_tolerance": "0.8"}))


def test_padding_is_tried_with_the_values_of_the_sample(tmp_path: Path) -> None:
    # Zeros: their average is the same with more of them.
    model = Computing(average)
    parameters = {**PARAMETERS, "preheat.buckets.length": "4"}
    close(load(tmp_path, model, parameters, config=CONFIG + SAMPLE))


def test_without_size_buckets_nothing_is_padded_and_no_padding_is_tried(tmp_path: Path) -> None:
    model = Computing(average)
    parameters = {key: value for key, value in PARAMETERS.items() if key.startswith("preheat.shape")}
    close(load(tmp_path, model, parameters))
    assert model.seen == ["2x2", "2x1", "1x2", "1x1"]


def test_what_is_compiled_is_told_of_the_load_and_what_is_compiled_later_of_the_request(tmp_path: Path) -> None:
    compiled: set[tuple[int, ...]] = set()

    def compute(array: Array) -> Array:
        if array.shape not in compiled:
            compiled.add(array.shape)
            report_compilation(Compilation(CompilationKind.GRAPH, str(array.shape), cached=len(array) == 1))
        return -array

    events = Events()
    loaded = load(tmp_path, Computing(compute), {**PARAMETERS, "preheat.outside_buckets": "compile"}, events=events)
    # What trying the padding compiled is stated, and is no part of the warm-up.
    assert (loaded.event.compiled, loaded.event.cached) == (2, 0)
    assert [report.compilations for report in loaded.reports] == [2]
    before = len(events.of(Compiled))
    assert ask(loaded, 1, 2, 3) == [[-1, -2, -3]]
    assert len(events.of(Compiled)) == before
    assert ask(loaded, *range(9)) is not None
    close(loaded)
    assert [(event.what, event.ready) for event in events.of(Compiled)[before:]] == [("(1, 9)", True)]
    assert not any(event.ready for event in events.of(Compiled)[:before])
