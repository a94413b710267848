"""A folder's stamp changes with whatever a load would see, and with nothing else; a rename is told from a copy."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from preheat.repository.stamps import FolderStamp, stamp_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a version of two files, a configuration, and something that versions share."""
    folder = tmp_path / "m"
    (folder / "1" / "deep").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"weights")
    (folder / "1" / "deep" / "table.json").write_text("{}")
    (folder / "config.pbtxt").write_text('backend: "double"')
    (folder / "labels.txt").write_text("cat")
    return folder


def stamp(folder: Path) -> FolderStamp:
    found = stamp_folder(folder)
    assert found is not None
    return found


def test_a_stamp_has_every_file_where_it_belongs(model: Path) -> None:
    found = stamp(model)
    assert [each.path for each in found.config] == ["config.pbtxt"]
    assert [each.path for each in found.shared] == ["labels.txt"]
    assert {version: [each.path for each in files] for version, files in found.versions.items()} == {
        1: ["1/deep/table.json", "1/model.onnx"]
    }


def _same_size_and_time(model: Path) -> None:
    """Another file in its place that looks the same."""
    path = model / "1" / "model.onnx"
    before = path.stat()
    other = model / ".other"
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda model: (model / "1" / "model.onnx").write_bytes(b"more weights"),
    "touched": lambda model: os.utime(model / "1" / "model.onnx", ns=(1, 1)),
    "another in its place": _same_size_and_time,
    "deep": lambda model: (model / "1" / "deep" / "table.json").write_text("[]"),
    "one more": lambda model: (model / "1" / "b.onnx").write_text(""),
    "one less": lambda model: (model / "1" / "model.onnx").unlink(),
    "config": lambda model: (model / "config.pbtxt").write_text("# nothing"),
    "no config": lambda model: (model / "config.pbtxt").unlink(),
    "shared": lambda model: (model / "labels.txt").write_text("dog"),
    "version": lambda model: (model / "2").mkdir(),
    "renamed": lambda model: (model / "1").rename(model / "2"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_load_would_see_changes_the_stamp(model: Path, change: Callable[[Path], object]) -> None:
    before = stamp(model)
    assert stamp(model).same_files(before)
    change(model)
    assert not stamp(model).same_files(before)


@pytest.mark.parametrize("path", [".hidden", "1/.part", "1/__pycache__/model.pyc", ".rolled-back-3/model.onnx"])
def test_what_no_load_sees_does_not(model: Path, path: str) -> None:
    before = stamp(model)
    (model / path).parent.mkdir(exist_ok=True)
    (model / path).write_text("x")
    assert stamp(model).same_files(before)


def test_a_link_is_followed_and_one_that_leads_back_ends(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model / "1", elsewhere)
    (model / "2").symlink_to(elsewhere)
    (model / "1" / "round").symlink_to(model / "1")
    (model / "1" / "nowhere").symlink_to(tmp_path / "gone")
    before = stamp(model)
    assert [each.path for each in before.versions[2]] == ["2/deep/table.json", "2/model.onnx"]
    (elsewhere / "model.onnx").write_bytes(b"other weights")
    assert not stamp(model).same_files(before)


def test_there_is_none_of_what_is_not_there(tmp_path: Path) -> None:
    assert stamp_folder(tmp_path / "m") is None


def _after_a_tick(path: Path) -> None:
    """The clock that files are stamped by moves in steps."""
    probe = path / ".probe"
    probe.touch()
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        probe.chmod(0o600)
    probe.unlink()


def test_a_version_that_was_renamed_in_is_told_from_one_that_was_copied(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "1", model / ".new")
    _after_a_tick(tmp_path)
    (model / ".new").rename(model / "2")
    shutil.copytree(model / "1", model / "3")
    assert stamp(model).renamed_in == {2}
    # Whoever goes on writing has not renamed what is whole.
    _after_a_tick(tmp_path)
    (model / "2" / "deep" / "table.json").write_text("[]")
    assert stamp(model).renamed_in == frozenset()


def test_a_model_that_was_renamed_in_is_at_rest_at_once(model: Path, tmp_path: Path) -> None:
    assert not stamp(model).renamed
    assert not stamp(model).rests(3600)
    assert stamp(model).rests(0)
    _after_a_tick(tmp_path)
    model.rename(tmp_path / "other")
    assert stamp(tmp_path / "other").renamed
    assert stamp(tmp_path / "other").rests(3600)
