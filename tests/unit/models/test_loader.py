"""From a folder to a warm handle; and whatever fails on the way leaves nothing behind."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
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
    loader_of,
    model_folder,
    parameters_text,
    raise_,
    request,
    rows_of,
    tensor,
    threads,
)

from preheat.backend import Backend, Instance, Model, ModelSource, Outcome, Request, RequestSession, Response
from preheat.cache import CompileCache
from preheat.errors import BackendMissing, InvalidArtifact, InvalidConfig, LoadFailed, QueueFull, reason_of
from preheat.models.handle import Handle
from preheat.models.loader import Loaded, Loader, LoadLimits
from preheat.scheduling.pacing import Pacer
from preheat.scheduling.pending import Answer
from preheat.telemetry.events import VersionLoaded

TWO_INSTANCES = f"{ECHO_CONFIG} instance_group {{ count: 2 }}"
ON_TWO_DEVICES = f"{ECHO_CONFIG} instance_group {{ kind: KIND_GPU count: 2 }}"
SAMPLE = """
model_warmup {
  name: "typical" batch_size: 2 count: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } }
}
"""


def load(repository: Path, backend: Backend, *, config: str = ECHO_CONFIG) -> Loaded:
    return loader_of(backend).load(model_folder(repository, config=config), life())


def close(handle: Handle) -> None:
    assert handle.drain(PATIENCE_S)
    assert handle.close(PATIENCE_S)


class Watched:
    """What a load does, and in which of it its thread was paced."""

    def __init__(self) -> None:
        self.paced: list[tuple[str, bool]] = []
        self.model = Recording(do=lambda _: self.look("infer"), at_open=lambda _: self.look("open"))

    def look(self, what: str) -> None:
        self.paced.append((what, sys.getprofile() is not None))

    def find_backend(self, _: str) -> Backend:
        def make(_: ModelSource) -> Model:
            self.look("load")
            return self.model

        self.look("import")
        return PlannedBackend(make)


@pytest.mark.parametrize("serving", [True, False])
def test_beside_models_that_serve_a_load_is_paced_until_it_serves_itself(tmp_path: Path, *, serving: bool) -> None:
    watched = Watched()
    limits = LoadLimits(1, 10**6, cores=1)
    pacer = Pacer(0.5, in_use=lambda: False)
    loader = Loader(watched.find_backend, limits=limits, observer=Events(), pacer=pacer)
    loaded = loader.load(model_folder(tmp_path), life(), serving=serving)
    # Of the batch sizes 8, 4, 2 and 1.
    assert watched.paced == [(what, serving) for what in ("import", "load", "open", *["infer"] * 4)]
    asked = Replies()
    loaded.handle.submit(request(tensor("x", rows_of(1))), asked)
    asked.wait()
    assert watched.paced[-1] == ("infer", False)
    close(loaded.handle)


def warmed(repository: Path, model: Recording, *, config: str = ECHO_CONFIG) -> list[str]:
    """What is called of ``model`` until it is warm."""
    loaded = load(repository, PlannedBackend(lambda _: model), config=config)
    names = list(model.names)
    close(loaded.handle)
    return names


def test_every_bucket_is_warm_before_a_version_can_be_reached(tmp_path: Path) -> None:
    assert warmed(tmp_path, Recording()) == ["open", "infer 8", "infer 4", "infer 2", "infer 1"]


def test_buckets_and_samples_are_the_configurations_where_it_has_them(tmp_path: Path) -> None:
    config = ECHO_CONFIG + parameters_text({"preheat.buckets": "3,8"}) + SAMPLE
    assert warmed(tmp_path, Recording(), config=config) == ["open", "infer 8", "infer 3", "infer 2", "infer 2"]


def test_every_instance_is_warmed(tmp_path: Path) -> None:
    names = warmed(tmp_path, Recording(), config=TWO_INSTANCES)
    assert (names.count("open"), names.count("infer 8"), names.count("infer 1")) == (2, 2, 2)


@pytest.mark.parametrize(("specializes", "expected"), [(True, "infer 4"), (False, "infer 3")])
def test_batches_are_padded_for_engines_that_specialize_on_shape_only(
    tmp_path: Path, specializes: bool, expected: str
) -> None:
    model, replies = Recording(specializes_on_shape=specializes), Replies()
    handle = load(tmp_path, PlannedBackend(lambda _: model)).handle
    handle.submit(request(tensor("x", rows_of(1, 2, 3))), replies)
    replies.wait()
    close(handle)
    assert model.names[-3] == expected


def test_a_model_is_loaded_once_for_each_device_and_told_where_it_is(tmp_path: Path) -> None:
    sources: list[ModelSource] = []
    models = [Recording(), Recording()]

    def make(source: ModelSource) -> Model:
        sources.append(source)
        return models[len(sources) - 1]

    backend = PlannedBackend(make, devices=("cpu", "cuda:0", "cuda:1"))
    config = ON_TWO_DEVICES + parameters_text({"mode": "fast", "preheat.buckets": "8"})
    close(load(tmp_path, backend, config=config).handle)
    assert [(source.device, source.instances) for source in sources] == [("cuda:0", 2), ("cuda:1", 2)]
    assert {source.version_path for source in sources} == {tmp_path / "m" / "1"}
    assert sources[0].config_path == tmp_path / "m" / "config.pbtxt"
    assert sources[0].parameters == {"mode": "fast"}
    opened = [sorted(model.instances, key=lambda each: each.ordinal) for model in models]
    assert opened == [
        [Instance(0, "cuda:0", 1), Instance(1, "cuda:0", 1)],
        [Instance(2, "cuda:1", 1), Instance(3, "cuda:1", 1)],
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ECHO_CONFIG, 4),
        (TWO_INSTANCES, 2),
        (f"{ECHO_CONFIG} instance_group {{ count: 9 }}", 1),
        (TWO_INSTANCES + parameters_text({"preheat.threads": "3"}), 3),
    ],
)
def test_the_cores_are_shared_out_among_the_instances_unless_threads_are_set(
    tmp_path: Path, config: str, expected: int
) -> None:
    model = Recording()
    warmed(tmp_path, model, config=config)
    assert {instance.threads for instance in model.instances} == {expected}


@pytest.mark.parametrize(
    ("batching", "expected"),
    [("", 5), ("dynamic_batching {}", 5), ("dynamic_batching { default_queue_policy { max_queue_size: 2 } }", 2)],
)
def test_the_queue_is_as_long_as_the_configuration_says_or_else_the_server(
    tmp_path: Path, batching: str, expected: int
) -> None:
    loader = loader_of(PlannedBackend(lambda _: Recording()), max_queue_requests=5)
    handle = loader.load(model_folder(tmp_path, config=ECHO_CONFIG + batching), life()).handle
    # The reply runs on the only worker, so nothing leaves the queue meanwhile.
    full: list[bool] = []
    done = Replies()

    def fill(answer: Answer) -> Answer:
        replies = [Replies() for _ in range(expected + 1)]
        for each in replies:
            handle.submit(request(tensor("x", rows_of(1))), each)
        full.append(handle.waiting == expected and isinstance(replies[-1].wait(), QueueFull))
        done(QueueFull("filled"))
        return answer

    handle.submit(request(tensor("x", rows_of(1))), fill)
    done.wait()
    close(handle)
    assert full == [True]


def test_what_is_said_of_a_loaded_version(tmp_path: Path) -> None:
    backend = PlannedBackend(lambda _: Recording(), devices=("cpu", "cuda:0", "cuda:1"))
    loaded = load(tmp_path, backend, config=ON_TWO_DEVICES)
    close(loaded.handle)
    assert isinstance(loaded.event, VersionLoaded)
    assert (loaded.event.model, loaded.event.version, loaded.event.backend) == ("m", 1, "planned")
    assert loaded.event.devices == ["cuda:0", "cuda:1"]
    assert loaded.event.load_s >= 0
    assert loaded.event.warmup_s >= 0


class Cautious(RequestSession):
    """A session that sees requests whole, and counts them."""

    def __init__(self, seen: list[int]) -> None:
        self._seen = seen

    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        self._seen.append(len(requests))
        return [Response({"y": each.inputs["x"]}) for each in requests]


@pytest.mark.parametrize(("samples", "expected"), [("", []), (SAMPLE, [2, 2])])
def test_a_session_that_sees_requests_whole_is_warmed_with_samples_only(
    tmp_path: Path, samples: str, expected: list[int]
) -> None:
    seen: list[int] = []

    class CautiousModel(Model):
        def open(self, instance: Instance) -> Cautious:  # noqa: ARG002 - the same everywhere
            return Cautious(seen)

    close(load(tmp_path, PlannedBackend(lambda _: CautiousModel()), config=ECHO_CONFIG + samples).handle)
    assert seen == expected


def fail_to_open_the_second(error: BaseException) -> Callable[[Instance], object]:
    return lambda instance: raise_(error) if instance.ordinal == 1 else None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Recording(at_open=fail_to_open_the_second(InvalidArtifact("no weights"))), InvalidArtifact),
        (Recording(at_open=fail_to_open_the_second(RuntimeError("no device"))), RuntimeError),
        (Recording(at_open=fail_to_open_the_second(SystemExit(1))), SystemExit),
        (Recording(do=lambda batch: raise_(RuntimeError("no memory")) if len(batch) == 4 else None), LoadFailed),
        (Recording(do=lambda batch: raise_(SystemExit(1)) if len(batch) == 4 else None), LoadFailed),
    ],
)
def test_an_instance_that_fails_fails_the_load_and_leaves_neither_threads_nor_sessions_nor_the_model(
    tmp_path: Path, model: Recording, expected: type[BaseException]
) -> None:
    before = threads()
    with pytest.raises(expected):
        load(tmp_path, PlannedBackend(lambda _: model), config=TWO_INSTANCES)
    opened = model.names.count("open") - (expected is not LoadFailed)
    assert model.names.count("close session") == opened
    assert model.names[-1] == "close model"
    assert model.names.count("close model") == 1
    assert threads() <= before


@pytest.mark.parametrize("error", [InvalidArtifact("no weights"), RuntimeError("out of memory"), SystemExit(1)])
def test_a_device_that_cannot_load_frees_what_the_others_loaded(tmp_path: Path, error: BaseException) -> None:
    first = Recording()
    before = threads()

    def make(source: ModelSource) -> Model:
        if source.device == "cuda:1":
            raise error
        return first

    with pytest.raises(type(error)):
        load(tmp_path, PlannedBackend(make, devices=("cuda:0", "cuda:1")), config=ON_TWO_DEVICES)
    assert first.names == ["close model"]
    assert threads() <= before


def test_a_failed_warm_up_says_where_and_why(tmp_path: Path) -> None:
    model = Recording(do=lambda batch: raise_(RuntimeError("no memory")) if len(batch) == 4 else None)
    with pytest.raises(LoadFailed) as caught:
        load(tmp_path, PlannedBackend(lambda _: model))
    assert str(caught.value) == ("warm-up of m/1 failed at instance 0: batch 4 (2 of 4): RuntimeError: no memory")


def test_describing_a_model_loads_nothing(tmp_path: Path) -> None:
    loaded: list[ModelSource] = []

    def make(source: ModelSource) -> Model:
        loaded.append(source)
        return Recording()

    described = loader_of(PlannedBackend(make)).describe(model_folder(tmp_path), 1)
    assert loaded == []
    assert described.proto.max_batch_size == 8
    assert [spec.name for spec in described.signature.inputs] == ["x"]


def test_a_device_that_is_not_there_is_found_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="KIND_GPU wants cuda:0"):
        load(tmp_path, PlannedBackend(lambda _: Recording()), config=ON_TWO_DEVICES)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LoadFailed("no weights"), "no weights"),
        (BackendMissing("pip install it"), "pip install it"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_the_reason_of_a_failed_load_names_errors_that_are_not_ours(error: BaseException, expected: str) -> None:
    assert reason_of(error) == expected


def test_loading_states_no_event_of_its_own(tmp_path: Path) -> None:
    events = Events()
    loaded = loader_of(PlannedBackend(lambda _: Recording()), events=events).load(model_folder(tmp_path), life())
    close(loaded.handle)
    assert events.seen == []


@pytest.mark.parametrize("step", ["at_open", "do"])
def test_what_the_cache_gave_to_a_load_that_fails_is_not_given_to_the_next(tmp_path: Path, step: str) -> None:
    class Compiling(PlannedBackend):
        def environment(self, source: ModelSource) -> str | None:
            return source.device

    def make(source: ModelSource) -> Model:
        assert source.cache_path is not None
        code = source.cache_path / "code"
        model = Recording()
        if code.exists():
            setattr(model, step, lambda _: raise_(RuntimeError("no such instruction")))
        code.write_text("compiled")
        return model

    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    with closing(CompileCache(directory, max_bytes=2**20)) as cache:
        limits = LoadLimits(1, 10**6, cores=1)
        loader = Loader(lambda _: Compiling(make), limits=limits, observer=Events(), cache=cache)
        folder = model_folder(tmp_path)
        close(loader.load(folder, life()).handle)
        with pytest.raises((LoadFailed, RuntimeError), match="no such instruction"):
            loader.load(folder, life())
        close(loader.load(folder, life()).handle)
