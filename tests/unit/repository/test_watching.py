"""What changes is told of once it has come to rest, and what arrived whole at once; nothing is told of twice."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import PATIENCE_S

from preheat.repository.resting import Rest
from preheat.repository.stamps import UNKNOWN, FileStamp, FolderStamp, stamp_folder, stamp_model, stamp_models
from preheat.repository.watching import Watcher, has_events


def folder(*versions: int, content: int = 0, config: int = 0, renamed_in: Sequence[int] = ()) -> FolderStamp:
    """A stamp whose versions have one file each, of size ``content``."""
    files = {version: (FileStamp(f"{version}/model", content, 0, 0),) for version in versions}
    return FolderStamp((FileStamp("config.pbtxt", config, 0, 0),), (), files, frozenset(renamed_in), False, 0.0)


def test_what_does_not_change_is_not_told() -> None:
    rest = Rest({"m": folder(1)}, 1.0)
    assert not any(rest.see("m", folder(1), now_s) for now_s in (0.0, 5.0, 10.0))
    assert not rest.see("other", None, 0.0)
    assert not rest.restless


def test_a_change_is_told_once_it_has_rested() -> None:
    rest = Rest({"m": folder(1)}, 1.0)
    assert not rest.see("m", folder(1, content=1), 0.0)
    assert rest.restless == ["m"]
    # A copy that goes on begins the wait anew.
    assert not rest.see("m", folder(1, content=2), 0.9)
    assert not rest.see("m", folder(1, content=2), 1.8)
    assert rest.see("m", folder(1, content=2), 1.95)
    assert not rest.see("m", folder(1, content=2), 5.0)
    assert not rest.restless


def test_what_becomes_as_it_was_is_not_told() -> None:
    rest = Rest({"m": folder(1)}, 1.0)
    assert not rest.see("m", folder(1, content=1), 0.0)
    assert not rest.see("m", folder(1), 5.0)
    assert not rest.restless


def test_a_version_that_was_renamed_in_is_told_at_once() -> None:
    rest = Rest({"m": folder(1)}, 1.0)
    assert rest.see("m", folder(1, 2, renamed_in=[2]), 0.0)
    # In place of another, too.
    assert rest.see("m", folder(1, 2, content=1, renamed_in=[1, 2]), 0.0)


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(folder(1, 2, config=1, renamed_in=[2]), id="with a configuration that is being written"),
        pytest.param(folder(2, renamed_in=[2]), id="where another is gone, and may come back"),
        pytest.param(folder(1, 2, 3, renamed_in=[2]), id="beside one that is being copied"),
        pytest.param(folder(1, 2), id="which was not renamed"),
    ],
)
def test_a_version_waits_for_all_of_its_model(now: FolderStamp) -> None:
    rest = Rest({"m": folder(1)}, 1.0)
    assert not rest.see("m", now, 0.0)
    assert rest.see("m", now, 1.0)


def test_a_model_that_goes_is_told_once_it_stays_away() -> None:
    rest = Rest({"m": folder(1)}, 1.0)
    assert not rest.see("m", None, 0.0)
    assert not rest.see("m", folder(1), 0.5)
    assert not rest.see("m", None, 1.0)
    assert rest.see("m", None, 2.0)
    assert not list(rest.known)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.0, 3.0)), min_size=1, max_size=30))
def test_whatever_is_told_last_is_how_it_is(changes: list[tuple[int, float]]) -> None:
    """Content 0 stands for a folder that is gone."""
    rest = Rest({}, 1.0)
    now_s, told, now = 0.0, None, None
    for content, wait_s in [*changes, (changes[-1][0], 1.0), (changes[-1][0], 1.0)]:
        now_s += wait_s
        now = folder(1, content=content) if content else None
        if rest.see("m", now, now_s):
            told = now
    assert told == now
    assert not rest.restless


class Told:
    """What a watcher told, to wait for."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self.names: list[str] = []

    def __call__(self, names: Sequence[str]) -> None:
        with self._news:
            self.names += names
            self._news.notify_all()

    def wait_for(self, expected: Sequence[str]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.names == list(expected), PATIENCE_S), self.names


def write(repository: Path, name: str, version: int = 1, text: str = "") -> None:
    (repository / name / str(version)).mkdir(parents=True, exist_ok=True)
    (repository / name / str(version) / "model.py").write_text(text)


def rename_in(repository: Path, name: str) -> None:
    write(repository, f".{name}")
    (repository / f".{name}").rename(repository / name)


@pytest.fixture
def told() -> Told:
    return Told()


Watch = Callable[..., None]


@pytest.fixture
def watch(told: Told) -> Iterator[Watch]:
    """Starts a watcher, which the test leaves to be closed."""
    watchers = []

    def start(*repositories: Path, settle_s: float = 0.2, poll_s: float = 3600.0) -> None:
        watchers.append(
            Watcher(repositories, known=stamp_models(repositories), tell=told, settle_s=settle_s, poll_s=poll_s)
        )
        watchers[-1].start()

    yield start
    for each in watchers:
        each.close()


def test_a_watcher_tells_of_what_comes_changes_and_goes(tmp_path: Path, told: Told, watch: Watch) -> None:
    for name in ("a", "b"):
        write(tmp_path, name)
    watch(tmp_path)
    write(tmp_path, "a", text="# changed")
    told.wait_for(["a"])
    rename_in(tmp_path, "c")
    told.wait_for(["a", "c"])
    shutil.rmtree(tmp_path / "b")
    told.wait_for(["a", "c", "b"])
    (tmp_path / "c" / "config.pbtxt").write_text("")
    told.wait_for(["a", "c", "b", "c"])


def test_what_changed_before_it_began_is_told(tmp_path: Path, told: Told) -> None:
    write(tmp_path, "a")
    known = stamp_models([tmp_path])
    write(tmp_path, "a", version=2)
    watcher = Watcher([tmp_path], known=known, tell=told, settle_s=0.0, poll_s=3600.0)
    watcher.start()
    told.wait_for(["a"])
    watcher.close()


def test_what_changes_while_it_begins_is_told(
    tmp_path: Path, told: Told, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking first and listening to events then would leave a moment in between of which nobody tells."""
    begin = watchfiles.watch

    def begin_late(*paths: Path, **options: Any) -> Iterator[object]:
        write(tmp_path, "a", text="# changed")
        return begin(*paths, **options)

    write(tmp_path, "a")
    monkeypatch.setattr("preheat.repository.watching.watchfiles.watch", begin_late)
    watch(tmp_path)
    told.wait_for(["a"])


def test_where_the_watch_cannot_begin_it_looks(
    tmp_path: Path, told: Told, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_many(*_: Path, **__: Any) -> Iterator[object]:
        raise RuntimeError("Too many open files (os error 24)")

    monkeypatch.setattr("preheat.repository.watching.watchfiles.watch", too_many)
    watch(tmp_path, poll_s=0.1)
    rename_in(tmp_path, "a")
    told.wait_for(["a"])
    assert "cannot be watched (Too many open files" in caplog.text


def test_where_there_are_no_events_it_looks(
    tmp_path: Path, told: Told, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preheat.repository.watching.has_events", lambda _: False)
    watch(tmp_path, poll_s=0.1)
    rename_in(tmp_path, "a")
    told.wait_for(["a"])
    shutil.rmtree(tmp_path / "a")
    told.wait_for(["a", "a"])


def test_a_repository_that_goes_away_is_not_its_models_deleted(
    tmp_path: Path, told: Told, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    here = tmp_path / "here"
    write(here, "a")
    watch(here, settle_s=0.0, poll_s=0.1)
    here.rename(tmp_path / "away")
    seen = threading.Event()
    while "is not there" not in caplog.text:
        assert not seen.wait(0.05)
    (tmp_path / "away").rename(here)
    write(here, "b")
    told.wait_for(["b"])


def test_an_empty_folder_in_its_place_is_a_repository_that_is_away(
    tmp_path: Path, told: Told, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    here = tmp_path / "here"
    write(here, "a")
    watch(here, settle_s=0.0, poll_s=1.0)
    here.rename(tmp_path / "away")
    here.mkdir()
    seen = threading.Event()
    while "is not there" not in caplog.text:
        assert not seen.wait(0.05)
    assert told.names == []


def test_that_a_restless_model_goes_is_told() -> None:
    rest = Rest({"m": UNKNOWN}, 1.0)
    assert not rest.see("m", folder(1), 0.0)
    assert not rest.see("m", None, 1.0)
    assert rest.see("m", None, 2.0)


def test_a_second_model_of_the_name_is_a_change(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, "m")
    second.mkdir()
    before = stamp_model([first, second], "m")
    assert before == stamp_folder(first / "m")
    write(second, "m")
    both = stamp_model([first, second], "m")
    assert both is not None
    assert not both.same_files(before)
    assert stamp_model([first, second], ".hidden") is None


@pytest.mark.parametrize(
    ("kind", "expected"), [("ext4", True), ("overlay", True), ("nfs4", False), ("cifs", False), ("fuse.sshfs", False)]
)
def test_network_file_systems_have_no_events(tmp_path: Path, kind: str, *, expected: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"36 22 0:30 / /models rw,noatime shared:1 - {kind} source rw\n"
        "37 22 0:31 / /models-elsewhere rw - tmpfs tmpfs rw\n"
    )
    assert has_events(Path("/models/repository"), mounts) is expected
    assert has_events(Path("/models-elsewhere"), mounts)
    assert has_events(Path("/"), mounts)
    assert has_events(Path("/"), tmp_path / os.devnull.lstrip("/"))
