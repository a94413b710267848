"""Bringing models up and down: each failure is its own, and every request is answered on the way out."""

import logging
import threading
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
    loader_of,
    manager_of,
    raise_,
    request,
    rows_of,
    tensor,
    threads,
    write_model,
)

from preheat.backend import Model, ModelSource
from preheat.errors import InvalidArtifact, ModelNotFound, ServerStopping
from preheat.messages import InferResponse
from preheat.models.departures import Unloaded
from preheat.models.lifecycle import State
from preheat.models.registry import Registry
from preheat.repository.scan import scan
from preheat.telemetry.events import ModelSettled, StateChanged, VersionLoaded


class Stack:
    """A registry and a manager over a repository, whose model ``name`` is ``models[name]`` or raises it."""

    def __init__(
        self,
        repository: Path,
        models: dict[str, Recording | BaseException],
        *,
        concurrency: int = 2,
        keep_s: float = 0.0,
    ) -> None:
        self.events = Events()
        self.registry = Registry(observer=self.events)
        self.models = models
        loader = loader_of(PlannedBackend(self._make), events=self.events)
        self.manager = manager_of(
            self.registry, loader, repository, concurrency=concurrency, keep_s=keep_s, observer=self.events
        )
        self.repository = repository

    def up(self) -> "Stack":
        self.manager.load(self.manager.declare(scan([self.repository])))
        return self

    def ask(self, model: str, value: float) -> Replies:
        replies = Replies()
        handle = self.registry.find(model, "")
        assert handle.submit(request(tensor("x", rows_of(value))), replies) is not None
        return replies

    def states(self, model: str) -> list[str]:
        return [event.state for event in self.events.of(StateChanged) if event.model == model]

    def _make(self, source: ModelSource) -> Model:
        made = self.models[source.name]
        if isinstance(made, BaseException):
            raise made
        return made


def test_every_model_is_known_and_not_ready_before_any_is_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "a", versions=(1, 2))
    write_model(tmp_path, "b", config="nonsense")
    stack = Stack(tmp_path, {})
    jobs = stack.manager.declare(scan([tmp_path]))
    assert [(job.lifecycle.model, job.lifecycle.version) for job in jobs] == [("a", 2)]
    assert stack.states("a") == ["LOADING"]
    assert stack.states("b") == ["FAILED"]
    assert not stack.registry.all_ready()
    with pytest.raises(ModelNotFound, match=r"'b' has no available versions: .*config\.pbtxt"):
        stack.registry.find("b", "")


@pytest.mark.parametrize("error", [InvalidArtifact("no weights"), RuntimeError("no memory"), SystemExit(1)])
def test_one_models_failure_is_its_own(tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bad", "broken", "good"):
        write_model(tmp_path, name, config="nonsense" if name == "broken" else ECHO_CONFIG)
    good = Recording()
    stack = Stack(tmp_path, {"bad": error, "good": good}).up()
    assert isinstance(stack.ask("good", 1).wait(), InferResponse)
    assert [row.model for row in stack.registry.index() if row.state is State.FAILED] == ["bad", "broken"]
    assert not stack.registry.all_ready()
    with pytest.raises(ModelNotFound, match=str(error)):
        stack.registry.find("bad", "")
    # An operator's mistake needs no trace; a defect does.
    assert ("Traceback" in caplog.text) == (not isinstance(error, InvalidArtifact))
    stack.manager.unload_all(PATIENCE_S)


def test_models_are_loaded_at_the_same_time_up_to_the_limit(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        write_model(tmp_path, name)
    meeting = threading.Barrier(2)
    models = {name: Recording(at_open=lambda _: meeting.wait(PATIENCE_S)) for name in names}
    stack = Stack(tmp_path, dict(models), concurrency=2).up()
    assert stack.registry.all_ready()
    assert stack.manager.unload_all(PATIENCE_S) == Unloaded(0, 0)


def test_that_a_version_was_loaded_is_stated_once_it_is_ready(tmp_path: Path) -> None:
    write_model(tmp_path)
    stack = Stack(tmp_path, {"m": Recording()}).up()
    assert [type(event) for event in stack.events.seen] == [StateChanged, StateChanged, VersionLoaded, ModelSettled]
    assert stack.states("m") == ["LOADING", "READY"]
    stack.manager.unload_all(PATIENCE_S)


def test_unloading_closes_every_model_and_ends_every_thread(tmp_path: Path) -> None:
    before = threads()
    models = {"a": Recording(), "b": Recording()}
    for name in models:
        write_model(tmp_path, name)
    stack = Stack(tmp_path, dict(models)).up()
    assert stack.manager.unload_all(PATIENCE_S) == Unloaded(0, 0)
    assert all(model.names[-2:] == ["close session", "close model"] for model in models.values())
    assert stack.states("a") == ["LOADING", "READY", "DRAINING", "UNLOADED"]
    assert stack.registry.handles() == []
    assert threads() <= before


def test_what_was_accepted_is_answered_by_its_model_if_there_is_time(tmp_path: Path) -> None:
    write_model(tmp_path)
    gate = Gate()
    stack = Stack(tmp_path, {"m": Recording(do=gate)}).up()
    held, waiting = stack.ask("m", 7), stack.ask("m", 1)
    gate.await_entered()
    unloading = background(stack.manager.unload_all, PATIENCE_S)
    gate.open()
    assert unloading.result(PATIENCE_S) == Unloaded(0, 0)
    assert all(isinstance(each.wait(), InferResponse) for each in (held, waiting))


def test_what_is_not_done_in_time_is_answered_with_that_and_a_hanging_session_is_left_behind(tmp_path: Path) -> None:
    write_model(tmp_path, "quick")
    write_model(tmp_path, "stuck")
    gate = Gate()
    stuck = Recording(do=gate)
    stack = Stack(tmp_path, {"quick": Recording(), "stuck": stuck}).up()
    held, waiting = stack.ask("stuck", 7), stack.ask("stuck", 1)
    gate.await_entered()
    assert stack.manager.unload_all(0.0) == Unloaded(abandoned=2, hanging=1)
    assert all(isinstance(each.wait(), ServerStopping) for each in (held, waiting))
    assert stack.states("quick")[-1] == "UNLOADED"
    assert stack.states("stuck")[-1] == "FAILED"
    assert "close model" not in stuck.names
    gate.open()


def test_nothing_is_left_to_do_for_an_empty_repository(tmp_path: Path) -> None:
    stack = Stack(tmp_path, {}).up()
    assert stack.registry.all_ready()
    assert stack.manager.unload_all(0.0) == Unloaded(0, 0)


def test_a_model_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name)
    models = {"a": Recording(at_close=lambda: raise_(RuntimeError("stuck"))), "b": Recording()}
    stack = Stack(tmp_path, dict(models)).up()
    stack.manager.unload_all(PATIENCE_S)
    assert [model.names[-1] for model in models.values()] == ["close model"] * 2


def test_a_load_that_fails_is_logged_with_its_model_and_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path)
    with caplog.at_level(logging.ERROR):
        Stack(tmp_path, {"m": RuntimeError("no memory")}).up()
    assert "loading m version 1 failed" in caplog.text
