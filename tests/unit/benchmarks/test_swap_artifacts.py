"""What is done to the folder of a model whose artifact is replaced."""

from pathlib import Path

import pytest
from benchmarks.swap_artifacts import Artifact, Folder

from preheat.repository.configuration import read_configuration


def artifact(place: Path, text: str, *, backend: str = "eager") -> Artifact:
    files = {name: place / f"{text}-{name}" for name in ("model.py", "model.safetensors")}
    for path in files.values():
        path.write_text(text * 40)
    return Artifact(1.0, "fp32", backend, files)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "repository" / "m", artifact(tmp_path, "old"))


def files(version: Path) -> dict[str, str]:
    return {path.name: path.read_text()[:3] for path in version.iterdir()}


def visible(folder: Folder) -> set[str]:
    return {path.name for path in folder.path.iterdir() if not path.name.startswith(".")}


def test_a_folder_begins_with_its_artifact_and_a_configuration(folder: Folder) -> None:
    assert visible(folder) == {"5", "config.pbtxt"}
    assert files(folder.version) == {"model.py": "old", "model.safetensors": "old"}


def test_a_new_version_comes_whole_and_older_ones_can_be_removed(folder: Folder, tmp_path: Path) -> None:
    folder.add(artifact(tmp_path, "new"))
    assert visible(folder) == {"5", "6", "config.pbtxt"}
    assert (folder.newest, files(folder.version)) == (6, {"model.py": "new", "model.safetensors": "new"})
    folder.remove_older()
    assert visible(folder) == {"6", "config.pbtxt"}


def test_a_new_version_has_a_configuration_where_its_backend_is_another(folder: Folder, tmp_path: Path) -> None:
    before = (folder.path / "config.pbtxt").stat().st_ino
    folder.add(artifact(tmp_path, "new"))
    assert (folder.path / "config.pbtxt").stat().st_ino == before
    folder.add(artifact(tmp_path, "net", backend="onnxruntime"))
    assert 'backend: "onnxruntime"' in (folder.path / "config.pbtxt").read_text()


def test_what_is_renamed_in_is_not_the_newest_yet(folder: Folder, tmp_path: Path) -> None:
    target = folder.rename_in(artifact(tmp_path, "bad"), 6)
    assert (files(target), folder.newest) == ({"model.py": "bad", "model.safetensors": "bad"}, 5)


def test_files_put_in_place_are_others_and_those_copied_over_are_the_same(folder: Folder, tmp_path: Path) -> None:
    file = folder.version / "model.safetensors"
    first = file.stat().st_ino
    folder.copy_slowly(artifact(tmp_path, "new"), folder.version)
    assert (files(folder.version)["model.safetensors"], file.stat().st_ino) == ("new", first)
    folder.put_in_place(artifact(tmp_path, "two"))
    assert files(folder.version) == {"model.py": "two", "model.safetensors": "two"}
    assert file.stat().st_ino != first


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "torch_compile"])
def test_configurations_say_what_the_folder_was_told(folder: Folder, tmp_path: Path, backend: str) -> None:
    folder.delay_us, folder.instances, folder.threads = 100, 2, 3
    folder.add(artifact(tmp_path, "new", backend=backend), configure=True)
    proto = read_configuration(folder.path).proto
    assert (proto.backend, proto.dynamic_batching.max_queue_delay_microseconds) == (backend, 100)
    assert (proto.instance_group[0].count, proto.parameters["preheat.threads"].string_value) == (2, "3")
    assert ("preheat.buckets" in proto.parameters) == (backend == "torch_compile")
