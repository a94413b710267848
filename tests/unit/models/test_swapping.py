"""A model follows its folder: what is new is loaded beside what is old, and what fails leaves what served."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.builders import ECHO_CONFIG, PATIENCE_S, Gate, Recording, background, raise_, rows_of, write_model
from tests.unit.models.test_manager import Stack

from preheat.errors import InvalidArtifact, LoadFailed, ModelNotFound
from preheat.messages import InferResponse
from preheat.models import manager
from preheat.models.departures import Unloaded
from preheat.models.lifecycle import State
from preheat.repository.scan import scan
from preheat.telemetry.events import InstancesChanged, VersionFreed


def write(folder: Path, version: int, text: str = "") -> None:
    """An artifact, as a copy that has ended leaves it."""
    (folder / str(version)).mkdir(exist_ok=True)
    (folder / str(version) / "model").write_text(text)


def configure(folder: Path, text: str) -> None:
    (folder / "config.pbtxt").write_text(f"{ECHO_CONFIG}\n{text}")


class Following(Stack):
    """A stack whose every load makes another model, which a test finds in ``made``; ``fails`` says which raise."""

    def __init__(self, repository: Path, *, keep_s: float = 0.0) -> None:
        super().__init__(repository, {}, keep_s=keep_s)
        self.made: list[Recording] = []
        self._one_made = threading.Condition()
        self.next: Callable[[], Recording] = Recording

    def _make(self, source: object) -> Recording:
        del source
        model = self.next()
        with self._one_made:
            self.made.append(model)
            self._one_made.notify_all()
        return model

    def wait_for_load(self, count: int) -> None:
        """Until ``count`` models have been made, since the beginning."""
        with self._one_made:
            assert self._one_made.wait_for(lambda: len(self.made) >= count, PATIENCE_S)

    def serves(self, model: str = "m") -> list[int]:
        return [handle.version for handle in self.registry.handles_of(model)]

    def answered_by(self) -> str:
        """Which version answers a request that names none."""
        answer = self.ask("m", 1).wait()
        assert isinstance(answer, InferResponse)
        return answer.version

    def reasons(self) -> dict[tuple[int | None, str], str]:
        return {(row.version, row.state.value): row.reason for row in self.registry.index()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@pytest.fixture
def stack(folder: Path) -> Following:
    return Following(folder.parent).up()  # type: ignore[return-value]


def fail() -> Recording:
    raise InvalidArtifact("no weights")


def fail_next(stack: Following) -> None:
    stack.next = fail


def test_nothing_is_done_where_nothing_has_changed(stack: Following) -> None:
    handle = stack.registry.find("m", "")
    stack.manager.refresh("m")
    assert stack.registry.find("m", "") is handle
    assert len(stack.made) == 1


def test_a_new_version_takes_over_and_the_old_one_is_freed(stack: Following, folder: Path) -> None:
    write(folder, 2)
    stack.manager.refresh("m")
    assert stack.serves() == [2]
    assert stack.answered_by() == "2"
    stack.events.wait_for(VersionFreed)
    assert stack.made[0].names[-1] == "close model"
    assert stack.states("m") == ["LOADING", "READY", "LOADING", "READY", "DRAINING", "UNLOADED"]


def test_an_artifact_that_changed_in_place_is_loaded_anew(stack: Following, folder: Path) -> None:
    before = stack.registry.find("m", "")
    write(folder, 1, "better")
    stack.manager.refresh("m")
    assert stack.registry.find("m", "") is not before
    assert stack.answered_by() == "1"
    assert len(stack.made) == 2


def test_requests_in_flight_are_answered_by_the_version_that_took_them(stack: Following, folder: Path) -> None:
    gate = Gate()
    stack.made[0].do = gate
    held = stack.ask("m", 7)
    gate.await_entered()
    write(folder, 2)
    stack.manager.refresh("m")
    assert stack.answered_by() == "2"
    gate.open()
    answer = held.wait()
    assert isinstance(answer, InferResponse)
    assert answer.version == "1"


def test_a_failed_load_leaves_the_old_version_and_says_why(stack: Following, folder: Path) -> None:
    write(folder, 2)
    fail_next(stack)
    stack.manager.refresh("m")
    assert stack.answered_by() == "1"
    assert stack.reasons() == {(1, "READY"): "", (2, "FAILED"): "no weights"}
    # As it is, it is not tried again.
    stack.next = Recording
    stack.manager.refresh("m")
    assert stack.serves() == [1]
    write(folder, 2, "repaired")
    stack.manager.refresh("m")
    assert stack.serves() == [2]
    assert stack.registry.all_ready()


def test_one_that_fails_in_place_leaves_what_was_loaded_and_the_index_says_so(stack: Following, folder: Path) -> None:
    write(folder, 1, "worse")
    fail_next(stack)
    stack.manager.refresh("m")
    assert stack.answered_by() == "1"
    assert stack.reasons() == {(1, "READY"): "serves what was there before: no weights"}
    stack.next = Recording
    write(folder, 1, "better")
    stack.manager.refresh("m")
    assert stack.reasons() == {(1, "READY"): ""}


def test_a_configuration_that_cannot_be_read_leaves_what_serves(stack: Following, folder: Path) -> None:
    (folder / "config.pbtxt").write_text("nonsense")
    stack.manager.refresh("m")
    assert stack.answered_by() == "1"
    assert "serves what was there before" in stack.reasons()[1, "READY"]


def test_what_changes_while_it_is_loaded_is_not_served(stack: Following, folder: Path) -> None:
    write(folder, 2)
    stack.next = lambda: Recording(at_open=lambda _: write(folder, 2, "more of it"))
    stack.manager.refresh("m")
    assert stack.serves() == [1]
    assert "changed while it was loaded" in stack.reasons()[2, "FAILED"]
    stack.next = Recording
    stack.manager.refresh("m")
    assert stack.serves() == [2]


def test_a_comment_in_the_configuration_changes_nothing(stack: Following, folder: Path) -> None:
    configure(folder, "# a comment")
    stack.manager.refresh("m")
    assert len(stack.made) == 1


def test_another_configuration_is_loaded_beside_the_one_that_serves(stack: Following, folder: Path) -> None:
    configure(folder, 'parameters { key: "preheat.threads" value { string_value: "3" } }')
    stack.manager.refresh("m")
    assert [model.instances[0].threads for model in stack.made] == [4, 3]


def test_another_policy_loads_and_retires_and_touches_no_other_version(stack: Following, folder: Path) -> None:
    write(folder, 2)
    stack.manager.refresh("m")
    two = stack.registry.find("m", "2")
    configure(folder, "version_policy { all { } }")
    stack.manager.refresh("m")
    assert stack.serves() == [1, 2]
    assert stack.registry.find("m", "2") is two
    configure(folder, "version_policy { specific { versions: 1 } }")
    stack.manager.refresh("m")
    assert stack.serves() == [1]


@pytest.mark.parametrize("resizes", [True, False])
def test_another_number_of_instances_is_had_on_the_same_model_where_it_can_be(folder: Path, resizes: bool) -> None:
    stack = Following(folder.parent)
    stack.next = lambda: Recording(resizes=resizes)
    stack.up()
    handle = stack.registry.find("m", "")
    configure(folder, "instance_group { count: 2 }")
    stack.manager.refresh("m")
    assert (stack.registry.find("m", "") is handle) == resizes
    assert len(stack.made) == (1 if resizes else 2)
    # As many threads as cores to share.
    assert sorted(each.threads for each in stack.made[-1].instances)[:2] == [2, 2]
    assert stack.registry.find("m", "").completed.proto.instance_group[0].count == 2
    assert [event.instances for event in stack.events.of(InstancesChanged)] == ([2] if resizes else [])
    assert stack.answered_by() == "1"
    configure(folder, "instance_group { count: 1 }")
    stack.manager.refresh("m")
    if resizes:
        assert stack.made[0].names.count("close session") == 3
    assert stack.answered_by() == "1"
    stack.manager.unload_all(PATIENCE_S)
    assert all(model.names.count("open") == model.names.count("close session") for model in stack.made)


def replace_and_hold(stack: Following, folder: Path) -> threading.Event:
    """Have version 2 take over from one that is closing until the event that is returned is set."""
    entered, may_close = threading.Event(), threading.Event()

    def close() -> None:
        entered.set()
        assert may_close.wait(PATIENCE_S)

    stack.made[0].at_close = close
    write(folder, 2)
    stack.manager.refresh("m")
    assert entered.wait(PATIENCE_S)
    return may_close


def test_stopping_waits_for_a_version_that_is_still_closing(stack: Following, folder: Path) -> None:
    may_close = replace_and_hold(stack, folder)
    # The other version is closed by the stop itself, before it waits.
    stack.made[1].at_close = may_close.set
    assert stack.manager.unload_all(PATIENCE_S) == Unloaded(abandoned=0, hanging=0)


def test_a_version_that_is_still_closing_when_the_server_stops_is_counted(stack: Following, folder: Path) -> None:
    may_close = replace_and_hold(stack, folder)
    assert stack.manager.unload_all(PATIENCE_S) == Unloaded(abandoned=0, hanging=1)
    may_close.set()


def test_an_instance_that_cannot_be_had_leaves_those_there_are(folder: Path) -> None:
    stack = Following(folder.parent)
    stack.next = lambda: Recording(resizes=True)
    stack.up()
    stack.made[0].at_open = lambda _: raise_(InvalidArtifact("no room"))
    configure(folder, "instance_group { count: 2 }")
    stack.manager.refresh("m")
    assert stack.answered_by() == "1"
    assert stack.reasons() == {(1, "READY"): "no room"}
    stack.manager.unload_all(PATIENCE_S)


def test_a_version_or_model_that_is_deleted_is_served_no_more(stack: Following, folder: Path) -> None:
    configure(folder, "version_policy { all { } }")
    write(folder, 2)
    stack.manager.refresh("m")
    shutil.rmtree(folder / "2")
    stack.manager.refresh("m")
    assert stack.serves() == [1]
    assert [version for version, _ in stack.reasons()] == [1]
    shutil.rmtree(folder / "1")
    stack.manager.refresh("m")
    assert stack.serves() == []
    assert "no version folder" in stack.reasons()[None, "FAILED"]
    shutil.rmtree(folder)
    stack.manager.refresh("m")
    with pytest.raises(ModelNotFound, match="'m' is not found"):
        stack.registry.find("m", "")
    assert stack.registry.index() == []
    assert stack.registry.all_ready()
    # And when it is back, it is served.
    write_model(folder.parent)
    stack.manager.refresh("m")
    assert stack.serves() == [1]


def test_a_model_that_is_renamed_goes_by_its_new_name(stack: Following, folder: Path) -> None:
    folder.rename(folder.parent / "n")
    for name in ("m", "n"):
        stack.manager.refresh(name)
    assert (stack.serves("m"), stack.serves("n")) == ([], [1])


def test_what_is_unknown_and_not_there_is_nothing_to_refresh(stack: Following) -> None:
    stack.manager.refresh("nobody")
    assert not stack.registry.knows("nobody")


def test_where_both_do_not_fit_the_old_version_can_be_freed_first(stack: Following, folder: Path) -> None:
    configure(folder, 'parameters { key: "preheat.swap" value { string_value: "replace" } }')
    order: list[str] = []
    stack.next = lambda: Recording(at_open=lambda _: order.append("open"))
    stack.made[0].at_close = lambda: order.append("close")
    stack.manager.refresh("m")
    assert order == ["close", "open"]
    assert stack.serves() == [1]
    # What was freed for one that fails is loaded again.
    write(folder, 2)

    def fail_once() -> Recording:
        stack.next = Recording
        return fail()

    stack.next = fail_once
    stack.manager.refresh("m")
    assert stack.serves() == [1]
    assert stack.reasons()[2, "FAILED"] == "no weights"


def test_what_does_not_fit_beside_is_refused_with_what_to_do(
    stack: Following, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preheat.models.swapping.available_bytes", lambda: 2**20)
    write(folder, 2, "x" * (2**20 + 1))
    stack.manager.refresh("m")
    assert stack.serves() == [1]
    assert "preheat.swap: replace" in stack.reasons()[2, "FAILED"]


def test_at_the_start_an_older_version_serves_where_the_latest_cannot(folder: Path) -> None:
    for version in (2, 3):
        write(folder, version)
    stack = Following(folder.parent)

    def fail_twice() -> Recording:
        stack.next = Recording if len(stack.registry.index()) > 1 else fail_twice
        return fail()

    stack.next = fail_twice
    stack.up()
    assert stack.serves() == [1]
    assert stack.reasons() == {(1, "READY"): "", (2, "FAILED"): "no weights", (3, "FAILED"): "no weights"}
    assert stack.registry.all_ready()


def test_a_policy_that_names_versions_has_no_other(folder: Path) -> None:
    write(folder, 2)
    configure(folder, "version_policy { specific { versions: 2 } }")
    stack = Following(folder.parent)
    fail_next(stack)
    stack.up()
    assert stack.serves() == []
    assert not stack.registry.all_ready()


def test_an_unload_by_hand_stays_until_the_files_change(stack: Following, folder: Path) -> None:
    stack.manager.unload_model("m")
    stack.manager.refresh("m")
    assert stack.serves() == []
    write(folder, 1, "changed")
    stack.manager.refresh("m")
    assert stack.serves() == [1]


def test_a_load_by_hand_ends_an_unload(stack: Following) -> None:
    stack.manager.unload_model("m")
    stack.manager.load_model("m")
    stack.manager.refresh("m")
    assert stack.serves() == [1]


CONFIG_JSON = """{
    "backend": "planned", "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["2"]}],
    "parameters": {"preheat.threads": {"string_value": "3"}}
}"""


def test_a_configuration_by_hand_stands_until_the_files_change(stack: Following, folder: Path) -> None:
    stack.manager.load_model("m", CONFIG_JSON)
    assert stack.made[-1].instances[0].threads == 3
    stack.manager.refresh("m")
    assert len(stack.made) == 2
    write(folder, 1, "changed")
    stack.manager.refresh("m")
    assert stack.made[-1].instances[0].threads == 4


def test_a_model_by_hand_needs_no_folder(stack: Following) -> None:
    stack.manager.load_model("sent", CONFIG_JSON, {"3/model": b"weights"})
    assert stack.serves("sent") == [3]
    stack.manager.refresh("sent")
    assert stack.serves("sent") == [3]
    stack.manager.unload_model("sent")
    with pytest.raises(ModelNotFound):
        stack.manager.load_model("sent")


def test_rolling_back_routes_to_what_is_still_in_memory(folder: Path) -> None:
    stack = Following(folder.parent, keep_s=3600).up()
    assert isinstance(stack, Following)
    first = stack.registry.find("m", "")
    write(folder, 2)
    stack.manager.refresh("m")
    assert "kept in memory" in stack.reasons()[1, "UNLOADED"]
    told = stack.manager.roll_back("m")
    assert "put aside" in told
    assert stack.registry.find("m", "") is first
    assert stack.answered_by() == "1"
    assert len(stack.made) == 2
    assert (folder / ".rolled-back-2").is_dir()
    # It stays until files change; the next start would serve the same.
    stack.manager.refresh("m")
    assert stack.serves() == [1]
    assert "rolled back" in stack.reasons()[1, "READY"]
    write(folder, 3)
    stack.manager.refresh("m")
    assert stack.serves() == [3]
    stack.manager.unload_all(PATIENCE_S)


def test_rolling_back_what_changed_in_place_is_good_until_the_next_start(folder: Path) -> None:
    stack = Following(folder.parent, keep_s=3600).up()
    assert isinstance(stack, Following)
    first = stack.registry.find("m", "")
    write(folder, 1, "worse")
    stack.manager.refresh("m")
    assert "starts anew" in stack.manager.roll_back("m")
    assert stack.registry.find("m", "") is first
    stack.manager.refresh("m")
    assert stack.registry.find("m", "") is first
    stack.manager.unload_all(PATIENCE_S)


def test_rolling_back_loads_what_is_on_disk_where_nothing_is_in_memory(stack: Following, folder: Path) -> None:
    write(folder, 2)
    stack.manager.refresh("m")
    assert "m/1 is READY" in stack.manager.roll_back("m")
    assert stack.serves() == [1]
    assert len(stack.made) == 3


def test_rolling_back_to_nothing_is_refused(stack: Following) -> None:
    with pytest.raises(ModelNotFound, match="no version before 1"):
        stack.manager.roll_back("m")
    with pytest.raises(ModelNotFound, match="no such model"):
        stack.manager.roll_back("nobody")


def test_what_is_kept_is_closed_when_the_server_stops(folder: Path) -> None:
    stack = Following(folder.parent, keep_s=3600).up()
    assert isinstance(stack, Following)
    write(folder, 2)
    stack.manager.refresh("m")
    stack.manager.unload_all(PATIENCE_S)
    assert [model.names[-1] for model in stack.made] == ["close model"] * 2


def test_what_is_placed_is_served_at_once(stack: Following, folder: Path) -> None:
    def put(version: int) -> Callable[[], int]:
        def write_it() -> int:
            write(folder, version)
            return version

        return write_it

    assert stack.manager.place("m", put(2), load=True) == "m/2 is READY"
    fail_next(stack)
    with pytest.raises(LoadFailed, match="no weights"):
        stack.manager.place("m", put(3), load=True)
    assert "not loaded until" in stack.manager.place("m", put(4), load=False)
    assert stack.serves() == [2]


def test_changes_of_one_model_are_one_after_another(stack: Following, folder: Path) -> None:
    gate = Gate()
    stack.next = lambda: Recording(at_open=lambda _: gate(rows_of(7)))
    write(folder, 2)
    first = background(stack.manager.refresh, "m")
    gate.await_entered()
    second = background(stack.manager.refresh, "m")
    gate.open()
    for each in (first, second):
        each.result(PATIENCE_S)
    assert len(stack.made) == 2
    assert [row.state for row in stack.registry.index() if row.version == 2] == [State.READY]


REPLACE = 'parameters { key: "preheat.swap" value { string_value: "replace" } }'


def test_versions_that_made_way_for_another_are_loaded_again_if_they_are_wanted(stack: Following, folder: Path) -> None:
    configure(folder, f"version_policy {{ all {{ }} }} {REPLACE}")
    write(folder, 2)
    stack.manager.refresh("m")
    assert stack.serves() == [1, 2]
    write(folder, 3)
    stack.manager.refresh("m")
    assert stack.serves() == [1, 2, 3]


def test_what_is_damaged_makes_nothing_give_way(stack: Following, folder: Path) -> None:
    configure(folder, REPLACE)
    stack.manager.refresh("m")
    before = stack.registry.find("m", "")
    write(folder, 2)
    (folder / "2" / "model.onnx").write_bytes(b"half")
    stack.manager.refresh("m")
    assert stack.registry.find("m", "") is before
    assert "damaged" in stack.reasons()[2, "FAILED"]


def test_what_is_damaged_keeps_no_other_from_being_served(stack: Following, folder: Path) -> None:
    configure(folder, f"version_policy {{ all {{ }} }} {REPLACE}")
    stack.manager.refresh("m")
    for version in (2, 3):
        write(folder, version)
    (folder / "2" / "model.onnx").write_bytes(b"half")
    stack.manager.refresh("m")
    assert stack.serves() == [1, 3]
    assert "damaged" in stack.reasons()[2, "FAILED"]
    made = len(stack.made)
    stack.manager.refresh("m")
    assert len(stack.made) == made


def test_an_older_version_that_failed_as_it_is_is_not_tried_again(folder: Path) -> None:
    write(folder, 2)
    stack = Following(folder.parent)
    tried: list[int] = []

    def fail_again() -> Recording:
        tried.append(1)
        return fail()

    stack.next = fail_again
    stack.up()
    assert len(tried) == 2
    write(folder, 2, "no better")
    stack.manager.refresh("m")
    assert len(tried) == 3
    stack.next = Recording
    write(folder, 1, "better")
    stack.manager.refresh("m")
    assert stack.serves() == [1]


def test_what_a_client_loads_before_its_turn_is_not_loaded_again(folder: Path) -> None:
    stack = Following(folder.parent)
    jobs = stack.manager.declare(scan([folder.parent]))
    stack.manager.load_model("m")
    stack.manager.load(jobs)
    assert len(stack.made) == 1
    assert stack.reasons() == {(1, "READY"): ""}
    assert stack.states("m") == ["LOADING", "LOADING", "READY"]
    assert stack.registry.all_ready()


def test_what_a_client_unloads_before_its_turn_stays_unloaded(folder: Path) -> None:
    stack = Following(folder.parent)
    jobs = stack.manager.declare(scan([folder.parent]))
    stack.manager.unload_model("m")
    stack.manager.load(jobs)
    assert stack.made == []
    assert stack.registry.index() == []
    assert stack.registry.all_ready()


def test_so_it_does_when_its_folder_cannot_be_read_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Following(folder.parent)
    jobs = stack.manager.declare(scan([folder.parent]))
    stack.manager.load_model("m")
    stack.manager.unload_model("m")
    monkeypatch.setattr(manager, "stamp_model", lambda *_: raise_(PermissionError("not for you")))
    stack.manager.load(jobs)
    assert stack.serves() == []
    assert stack.registry.all_ready()


def test_what_a_client_loads_in_vain_before_its_turn_is_loaded_as_it_is_on_disk(folder: Path) -> None:
    stack = Following(folder.parent)
    jobs = stack.manager.declare(scan([folder.parent]))
    fail_next(stack)
    with pytest.raises(LoadFailed):
        stack.manager.load_model("m", CONFIG_JSON)
    stack.next = Recording
    stack.manager.load(jobs)
    assert stack.serves() == [1]
    assert stack.registry.all_ready()


def test_what_was_declared_and_another_version_is_asked_for_is_forgotten(folder: Path) -> None:
    stack = Following(folder.parent)
    jobs = stack.manager.declare(scan([folder.parent]))
    write(folder, 2)
    stack.manager.load_model("m")
    stack.manager.load(jobs)
    assert stack.reasons() == {(2, "READY"): ""}


def test_what_was_damaged_in_place_makes_no_way_for_another_version(stack: Following, folder: Path) -> None:
    configure(folder, f"version_policy {{ all {{ }} }} {REPLACE}")
    stack.manager.refresh("m")
    before = stack.registry.find("m", "1")
    (folder / "1" / "model.onnx").write_bytes(b"half")
    write(folder, 2)
    stack.manager.refresh("m")
    assert stack.serves() == [1, 2]
    assert stack.registry.find("m", "1") is before
    write(folder, 3)
    stack.manager.refresh("m")
    assert stack.serves() == [1, 2, 3]
    assert stack.registry.find("m", "1") is before


def test_an_older_version_that_failed_is_tried_again_by_a_client(folder: Path) -> None:
    write(folder, 2)
    stack = Following(folder.parent)
    fail_next(stack)
    stack.up()
    assert stack.serves() == []

    def fail_once() -> Recording:
        stack.next = Recording
        return fail()

    stack.next = fail_once
    with pytest.raises(LoadFailed):
        stack.manager.load_model("m")
    assert stack.serves() == [1]


def test_rolling_back_undoes_the_last_change_and_touches_nothing_else(folder: Path) -> None:
    stack = Following(folder.parent, keep_s=3600)
    configure(folder, "version_policy { latest { num_versions: 2 } }")
    write(folder, 2)
    stack.up()
    two = stack.registry.find("m", "2")
    write(folder, 3)
    stack.manager.refresh("m")
    assert stack.serves() == [2, 3]
    stack.manager.roll_back("m")
    assert stack.serves() == [1, 2]
    assert stack.registry.find("m", "2") is two
    assert (folder / "2").is_dir()
    stack.manager.unload_all(PATIENCE_S)


def test_rolling_back_all_that_a_configuration_changed(folder: Path) -> None:
    stack = Following(folder.parent, keep_s=3600)
    configure(folder, "version_policy { all { } }")
    write(folder, 2)
    stack.up()
    before = stack.registry.handles_of("m")
    configure(folder, 'version_policy { all { } } parameters { key: "preheat.threads" value { string_value: "3" } }')
    stack.manager.refresh("m")
    assert stack.registry.handles_of("m") != before
    stack.manager.roll_back("m")
    assert stack.registry.handles_of("m") == before
    stack.manager.unload_all(PATIENCE_S)
    assert all(model.names[-1] == "close model" for model in stack.made)


def test_rolling_back_on_disk_puts_aside_what_failed_after_it_too(stack: Following, folder: Path) -> None:
    write(folder, 2)
    stack.manager.refresh("m")
    write(folder, 3)
    fail_next(stack)
    stack.manager.refresh("m")
    stack.next = Recording
    assert "m/1 is READY" in stack.manager.roll_back("m")
    assert stack.serves() == [1]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".rolled-back-2", ".rolled-back-3", "1", "config.pbtxt",
    ]  # fmt: skip


def test_what_a_model_writes_beside_itself_while_it_is_loaded_is_no_half_copy(stack: Following, folder: Path) -> None:
    write(folder, 2)
    stack.next = lambda: Recording(at_open=lambda _: (folder / "2" / "log").write_text("opened"))
    stack.manager.refresh("m")
    assert stack.serves() == [2]


def test_whatever_an_instance_raises_leaves_those_there_are(folder: Path) -> None:
    stack = Following(folder.parent)
    stack.next = lambda: Recording(resizes=True)
    stack.up()
    stack.made[0].at_open = lambda _: raise_(MemoryError("no room"))
    configure(folder, "instance_group { count: 2 }")
    stack.manager.refresh("m")
    assert stack.answered_by() == "1"
    assert "no room" in stack.reasons()[1, "READY"]
    stack.manager.unload_all(PATIENCE_S)


def test_what_is_waited_for_and_never_comes_is_waited_for_no_more(stack: Following) -> None:
    stack.registry.wait_for(["copied"])
    assert not stack.registry.all_ready()
    stack.manager.refresh("copied")
    assert stack.registry.all_ready()
