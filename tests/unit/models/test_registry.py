"""Lookups find what is READY, explain what is not, and never see a half-made change."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.builders import ECHO_CONFIG

from preheat.backend import PartialConfig
from preheat.errors import InvalidRequest, ModelNotFound, ModelUnavailable
from preheat.models.caching import CachedSources
from preheat.models.handle import Engines, Handle
from preheat.models.lifecycle import Lifecycle, State
from preheat.models.registry import Registry
from preheat.repository.completion import complete
from preheat.repository.configuration import parse_configuration
from preheat.scheduling.batching import BatchLimits
from preheat.scheduling.queue import RequestQueue
from preheat.telemetry.events import Event, StateChanged

COMPLETED = complete(parse_configuration(ECHO_CONFIG, Path("repository/m")), PartialConfig())


def queue() -> RequestQueue:
    return RequestQueue(BatchLimits(max_rows=8), max_requests=1, max_bytes=1)


def make(observer: Callable[[Event], None] = lambda _: None) -> Registry:
    return Registry(observer=observer)


def publish(registry: Registry, model: str = "m", version: int = 1) -> tuple[Handle, Lifecycle]:
    engines = Engines((), (), queue(), CachedSources(()))
    made = Handle(registry.begin(model, version), completed=COMPLETED, engines=engines, observer=lambda _: None)
    registry.publish(made)
    return made, made.lifecycle


def explanation(registry: Registry, model: str, version: str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        registry.find(model, version)
    return str(caught.value)


def test_a_version_is_found_by_its_number_and_the_newest_without_one() -> None:
    registry = make()
    second, _ = publish(registry, version=2)
    tenth, _ = publish(registry, version=10)
    first, _ = publish(registry, version=1)
    assert registry.find("m", "1") is first
    assert registry.find("m", "2") is second
    assert registry.find("m", "") is tenth
    assert registry.handles_of("m") == [first, second, tenth]
    assert registry.handles() == [first, second, tenth]


def test_models_of_other_names_are_kept_apart() -> None:
    registry = make()
    ours, _ = publish(registry, "a")
    theirs, _ = publish(registry, "b")
    registry.retire(theirs)
    assert registry.find("a", "") is ours
    assert registry.handles_of("b") == []


def test_ready_is_announced_when_requests_can_already_be_served() -> None:
    found: list[Handle] = []

    def look(event: Event) -> None:
        if isinstance(event, StateChanged) and event.state == "READY":
            found.append(registry.find(event.model, str(event.version)))

    registry = make(look)
    made, _ = publish(registry)
    assert found == [made]


def test_draining_is_announced_while_requests_can_still_be_served() -> None:
    found: list[Handle] = []

    def look(event: Event) -> None:
        if isinstance(event, StateChanged) and event.state == "DRAINING":
            found.append(registry.find(event.model, ""))

    registry = make(look)
    made, lifecycle = publish(registry)
    registry.retire(made)
    assert found == [made]
    assert lifecycle.state is State.DRAINING
    assert not registry.is_ready("m", "")


def test_retiring_the_newest_version_leaves_requests_to_the_one_before() -> None:
    registry = make()
    older, _ = publish(registry, version=1)
    newest, _ = publish(registry, version=2)
    registry.retire(newest)
    assert registry.find("m", "") is older


@pytest.mark.parametrize("text", ["x", "0", "-1", "+1", "1.0", " 1", "1e3", "٣", "²", "9" * 20])
def test_a_version_that_is_no_whole_number_above_0_is_refused_by_its_text(text: str) -> None:
    registry = make()
    publish(registry)
    registry.mark_broken("broken", "why")
    for model in ("m", "broken"):
        message = explanation(registry, model, text, InvalidRequest)
        assert f"specified version string '{text}', version should be an integral value > 0" in message
    with pytest.raises(InvalidRequest):
        registry.is_ready("m", text)


def test_an_unknown_model_is_named_and_so_are_those_there_are() -> None:
    registry = make()
    publish(registry, "b")
    registry.mark_broken("a", "no config")
    text = explanation(registry, "nope", "", ModelNotFound)
    assert text == "Request for unknown model: 'nope' is not found; there are ['a', 'b']"


def test_an_unknown_version_is_named_and_so_are_those_there_are() -> None:
    registry = make()
    publish(registry, version=1)
    publish(registry, version=3)
    text = explanation(registry, "m", "99", ModelNotFound)
    assert text == "Request for unknown model: 'm' version 99 is not found; there are [1, 3]"


def test_a_version_that_loads_is_unavailable_rather_than_unknown() -> None:
    registry = make()
    registry.begin("m", 1)
    text = explanation(registry, "m", "1", ModelUnavailable)
    assert text == "Request for unknown model: 'm' version 1 is not at ready state (LOADING)"
    text = explanation(registry, "m", "", ModelNotFound)
    assert text == "Request for unknown model: 'm' has no available versions: version 1 (LOADING)"


def test_a_version_that_failed_says_why() -> None:
    registry = make()
    registry.begin("m", 1).move_to(State.FAILED, "no weights")
    assert "version 1 is not at ready state (FAILED: no weights)" in explanation(registry, "m", "1", ModelUnavailable)
    assert "no available versions: version 1 (FAILED: no weights)" in explanation(registry, "m", "", ModelNotFound)


def test_a_model_that_could_not_be_tried_says_why() -> None:
    registry = make()
    registry.mark_broken("m", "config.pbtxt:1: what is this")
    assert explanation(registry, "m", "", ModelNotFound).endswith("versions: config.pbtxt:1: what is this")
    assert explanation(registry, "m", "1", ModelNotFound).endswith("not found: config.pbtxt:1: what is this")


def test_whether_a_model_is_ready_is_no_error_for_what_is_unknown_or_on_its_way() -> None:
    registry = make()
    publish(registry)
    registry.begin("slow", 1)
    asked = [("m", ""), ("m", "1"), ("m", "2"), ("nope", ""), ("nope", "1"), ("slow", ""), ("slow", "1")]
    assert [registry.is_ready(*each) for each in asked] == [True, True, False, False, False, False, False]


def test_the_server_is_ready_when_what_it_waits_for_has_come_up_or_is_not_wanted() -> None:
    registry = make()
    assert registry.all_ready()
    registry.wait_for(["a", "b"])
    publish(registry, "a")
    registry.wait_no_more("a")
    assert not registry.all_ready()
    registry.wait_no_more("b")
    assert registry.all_ready()


def test_what_comes_later_and_fails_keeps_nobody_from_what_serves() -> None:
    registry = make()
    publish(registry)
    registry.begin("slow", 1)
    registry.begin("worse", 3).move_to(State.FAILED, "why")
    registry.mark_broken("bad", "why")
    assert registry.all_ready()


def test_a_note_is_the_reason_of_versions_that_serve() -> None:
    registry = make()
    publish(registry)
    registry.begin("m", 2).move_to(State.FAILED, "why")
    registry.note("m", "version 2 failed")
    assert [row.reason for row in registry.index()] == ["version 2 failed", "why"]
    registry.note("m", "")
    assert [registry.reason("m", version) for version in (1, 2, 3)] == ["", "why", ""]


def test_a_model_or_version_whose_folder_is_gone_is_unknown() -> None:
    registry = make()
    for version in (1, 2):
        handle, lifecycle = publish(registry, version=version)
        registry.retire(handle)
        lifecycle.move_to(State.UNLOADED)
    registry.forget_version("m", 1)
    assert registry.versions_of("m") == {2}
    assert "version 1 is not found" in explanation(registry, "m", "1", ModelNotFound)
    registry.forget("m")
    assert not registry.knows("m")
    assert "'m' is not found" in explanation(registry, "m", "", ModelNotFound)


def test_failures_name_models_that_could_not_be_tried_and_versions_that_failed() -> None:
    registry = make()
    publish(registry, "good")
    registry.begin("worse", 3).move_to(State.FAILED, "why")
    registry.mark_broken("bad", "why")
    failed = [(row.model, row.version) for row in registry.index() if row.state is State.FAILED]
    assert failed == [("bad", None), ("worse", 3)]


def test_a_version_loaded_again_begins_a_life_of_its_own() -> None:
    registry = make()
    old, lifecycle = publish(registry)
    registry.retire(old)
    lifecycle.move_to(State.UNLOADED)
    new, _ = publish(registry)
    assert registry.find("m", "1") is new


def test_a_successor_takes_over_in_one_step_and_its_predecessor_falls_silent() -> None:
    seen: list[Event] = []
    registry = make(seen.append)
    old, _ = publish(registry)
    new, _ = publish(registry)
    assert registry.find("m", "1") is new
    seen.clear()
    old.lifecycle.move_to(State.DRAINING)
    assert seen == []
    assert [row.state for row in registry.index()] == [State.READY]


def test_a_version_that_is_served_stays_ready_while_its_successor_loads() -> None:
    registry = make()
    publish(registry)
    registry.begin("m", 1)
    assert [row.state for row in registry.index()] == [State.READY]


def test_why_a_model_failed_that_was_given_up_is_forgotten() -> None:
    registry = make()
    registry.begin("worse", 3).move_to(State.FAILED, "why")
    registry.mark_broken("bad", "why")
    for model in ("worse", "bad"):
        assert registry.knows(model)
        registry.forget_failures(model)
        assert not registry.knows(model)


def test_a_load_that_fails_beside_a_served_version_changes_nothing_that_others_see() -> None:
    seen: list[Event] = []
    registry = make(seen.append)
    served, _ = publish(registry)
    seen.clear()
    registry.begin("m", 1).move_to(State.FAILED, "why")
    assert seen == []
    assert registry.find("m", "1") is served
