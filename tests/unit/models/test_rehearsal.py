"""A version that is warm is asked on the whole way of a request, before anyone else can; and nobody hears of it."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.unit.builders import (
    ECHO_CONFIG,
    PATIENCE_S,
    Events,
    PlannedBackend,
    Recording,
    Replies,
    life,
    model_folder,
    parameters_text,
    raise_,
    request,
    rows_of,
    tensor,
    threads,
)

from preheat.backend import (
    Dimension,
    Instance,
    Model,
    Outcome,
    PartialConfig,
    Request,
    RequestSession,
    Response,
    TensorSpec,
)
from preheat.errors import ExecutionFailed
from preheat.models.handle import Handle
from preheat.models.loader import Loader, LoadLimits
from preheat.models.rehearsal import rehearse
from preheat.scheduling.warming import WarmupReport
from preheat.tensors import Array, DataType

TWO_INSTANCES = f"{ECHO_CONFIG} instance_group {{ count: 2 }}"


@pytest.fixture
def events() -> Events:
    return Events()


def load(
    repository: Path,
    model: Model,
    events: Events,
    *,
    config: str = ECHO_CONFIG,
    artifact: PartialConfig | None = None,
    rehearse: Callable[[Handle, Sequence[WarmupReport]], None] = rehearse,
) -> Handle:
    backend = PlannedBackend(lambda _: model, artifact=artifact)
    loader = Loader(lambda _: backend, limits=LoadLimits(100, 10**6, cores=1), observer=events, rehearse=rehearse)
    return loader.load(model_folder(repository, config=config), life()).handle


def close(handle: Handle) -> None:
    assert handle.drain(PATIENCE_S)
    assert handle.close(PATIENCE_S)


@pytest.mark.parametrize(("config", "asked"), [(ECHO_CONFIG, 4), (TWO_INSTANCES, 8)])
def test_each_instance_is_asked_for_the_smallest_bucket_and_nothing_is_counted(
    tmp_path: Path, events: Events, config: str, asked: int
) -> None:
    model = Recording()
    before: list[str] = []

    def watched(handle: Handle, reports: Sequence[WarmupReport]) -> None:
        before.extend(model.names)
        rehearse(handle, reports)

    handle = load(tmp_path, model, events, config=config, rehearse=watched)
    assert model.names[len(before) :] == ["infer 1"] * asked
    assert events.seen == []
    # What comes then is counted.
    replies = Replies()
    handle.submit(request(tensor("x", rows_of(1))), replies)
    replies.wait()
    close(handle)
    assert len(events.seen) == 1


@pytest.mark.parametrize("limit", ["_LONGEST_SECONDS", "_MOST_BYTES"])
def test_a_model_that_takes_long_or_whose_requests_are_large_is_not_asked(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"preheat.models.rehearsal.{limit}", 0)
    model = Recording()
    close(load(tmp_path, model, events))
    assert model.names.count("infer 1") == 1


def test_instances_are_asked_at_the_same_time(tmp_path: Path, events: Events) -> None:
    """Each worker is held with its question until the other one has one too."""
    together = threading.Barrier(2)

    def watched(handle: Handle, reports: Sequence[WarmupReport]) -> None:
        model.do = lambda _: together.wait(PATIENCE_S)
        rehearse(handle, reports)

    model = Recording()
    close(load(tmp_path, model, events, config=TWO_INSTANCES, rehearse=watched))
    assert not together.broken


def test_a_model_that_fails_then_is_logged_and_served(
    tmp_path: Path, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    model = Recording()

    def fail(_: Array) -> None:
        raise ExecutionFailed("out of luck")

    def fail_from_now_on(handle: Handle, reports: Sequence[WarmupReport]) -> None:
        model.do = fail
        with caplog.at_level("INFO"):
            rehearse(handle, reports)

    handle = load(tmp_path, model, events, rehearse=fail_from_now_on)
    assert "m/1: a request for practice was answered: out of luck" in caplog.text
    assert events.seen == []
    close(handle)


def test_a_rehearsal_that_fails_leaves_nothing_behind(tmp_path: Path, events: Events) -> None:
    model, before = Recording(), threads()
    with pytest.raises(ZeroDivisionError):
        load(tmp_path, model, events, rehearse=lambda *_: raise_(ZeroDivisionError()))
    assert model.names[-2:] == ["close session", "close model"]
    assert threads() == before


def test_a_queue_too_short_for_all_instances_is_no_news(
    tmp_path: Path, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    """At most one may wait, so the second of two that are asked at once may be refused."""
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    model = Recording()
    with caplog.at_level("INFO"):
        close(load(tmp_path, model, events, config=f"{ECHO_CONFIG} {queue} instance_group {{ count: 4 }}"))
    assert caplog.text == ""
    assert events.seen == []


def test_it_is_asked_as_clients_see_it(tmp_path: Path, events: Events, caplog: pytest.LogCaptureFixture) -> None:
    reshaped = "dims: [ 2, 1 ] reshape { shape: [ 2 ] } }\noutput"
    config = ECHO_CONFIG.replace("dims: [ 2 ] }\noutput", reshaped)
    model = Recording()
    with caplog.at_level("INFO"):
        close(load(tmp_path, model, events, config=config))
    assert (model.names.count("infer 1"), caplog.text) == (5, "")


def test_the_sizes_are_the_smallest_buckets(tmp_path: Path, events: Events) -> None:
    shape = (Dimension(), Dimension("length", 1, 64))
    artifact = PartialConfig((TensorSpec("x", DataType.FP32, shape),), (TensorSpec("y", DataType.FP32, shape),))
    keys = {"preheat.buckets.length": "8,16", "preheat.pad.x": "0"}
    config = 'backend: "planned"\nmax_batch_size: 2\n' + parameters_text(keys)
    shapes: list[tuple[int, ...]] = []
    model = Recording(do=lambda batch: shapes.append(batch.shape))
    close(load(tmp_path, model, events, config=config, artifact=artifact))
    assert shapes[-4:] == [(1, 8)] * 4


def test_a_session_that_sees_requests_whole_is_not_asked(tmp_path: Path, events: Events) -> None:
    asked: list[Request] = []

    class Cautious(RequestSession):
        def execute(self, requests: Sequence[Request]) -> list[Outcome]:
            asked.extend(requests)
            return [Response({"y": each.inputs["x"]}) for each in requests]

    class CautiousModel(Model):
        def open(self, instance: Instance) -> Cautious:  # noqa: ARG002 - the same everywhere
            return Cautious()

    close(load(tmp_path, CautiousModel(), events))
    assert asked == []
