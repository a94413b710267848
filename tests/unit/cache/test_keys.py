"""Equal keys for what would compile to the same, different keys for everything else."""

import os
import time
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preheat.cache import make_key
from preheat.cache.files import Digest, digest
from preheat.cache.keys import ArtifactDigests, environment_folder

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.tuples(
    st.text(max_size=4),
    st.text(max_size=4),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
    st.dictionaries(st.text(max_size=4), JSON, max_size=3),
)


def name_of(parts: tuple[str, str, Mapping[str, str], Mapping[str, Any]]) -> str:
    backend, environment, artifacts, configuration = parts
    return make_key(backend=backend, environment=environment, artifacts=artifacts, configuration=configuration).name


@given(one=PARTS, other=PARTS)
def test_keys_are_equal_exactly_where_their_parts_are(one: Any, other: Any) -> None:
    # repr: 1, 1.0 and True are equal to Python, and different in a configuration.
    assert (name_of(one) == name_of(other)) == (_canonical(one) == _canonical(other))


@given(parts=PARTS)
def test_the_order_of_artifacts_and_of_the_configuration_does_not_matter(parts: Any) -> None:
    backend, environment, artifacts, configuration = parts
    turned = (backend, environment, _reversed(artifacts), _reversed(configuration))
    assert name_of(turned) == name_of(parts)


def test_a_value_does_not_move_from_one_part_to_another() -> None:
    assert name_of(("a", "bc", {}, {})) != name_of(("ab", "c", {}, {}))
    assert name_of(("a", "b", {"x": "y"}, {})) != name_of(("a", "b", {}, {"x": "y"}))
    assert name_of(("a", "b", {"xy": ""}, {})) != name_of(("a", "b", {"x": "y"}, {}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_a_configuration_that_is_no_json_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        name_of(("a", "b", {}, {"x": value}))


@given(text=st.text())
def test_an_environments_folder_is_one_safe_name_whatever_the_text(text: str) -> None:
    name = environment_folder(text)
    assert name == Path(name).name
    assert name.isascii()
    assert not name.startswith(".")
    assert len(name) <= 64
    assert name != "work"


def test_an_environments_folder_can_be_read_and_tells_what_the_slug_does_not() -> None:
    plain, other = environment_folder("torch 2.13.0+cpu, AVX512"), environment_folder("torch 2.13.0_cpu, AVX512")
    assert plain.startswith("torch-2.13.0-cpu-avx512-")
    assert other.startswith("torch-2.13.0-cpu-avx512-")
    assert plain != other


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{_canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return repr(value)


def _reversed(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return dict(reversed(list(mapping.items())))


class Folder:
    """A version folder, and what is digested of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "sub").mkdir(parents=True)
        (path / "model.py").write_bytes(b"x = 1")
        (path / "sub" / "weights").write_bytes(bytes(3 << 20))
        self.digests = ArtifactDigests()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "1")


def test_every_file_counts_by_its_path_and_content(folder: Folder) -> None:
    assert folder.digests.of(folder.path).keys() == {"model.py", "sub/weights"}
    before = folder.digests.of(folder.path)
    (folder.path / "model.py").rename(folder.path / "other.py")
    renamed = folder.digests.of(folder.path)
    assert renamed.keys() == {"other.py", "sub/weights"}
    assert renamed["other.py"] == before["model.py"]
    with (folder.path / "sub" / "weights").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"1")
    assert folder.digests.of(folder.path)["sub/weights"] != before["sub/weights"]


def test_what_a_first_load_writes_beside_the_artifact_does_not_count(folder: Folder) -> None:
    before = folder.digests.of(folder.path)
    (folder.path / "__pycache__").mkdir()
    (folder.path / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"derived")
    assert folder.digests.of(folder.path) == before


def test_links_are_followed_but_nowhere_and_pipes_lead_nowhere(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_bytes(b"weights")
    (folder.path / "linked").symlink_to(tmp_path / "elsewhere")
    (folder.path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder.path / "pipe")
    before = folder.digests.of(folder.path)
    assert before.keys() == {"model.py", "sub/weights", "linked/big"}
    (tmp_path / "elsewhere" / "big").write_bytes(b"others!")
    assert folder.digests.of(folder.path) != before


def test_a_folder_that_holds_itself_is_an_error_and_no_endless_walk(folder: Folder) -> None:
    (folder.path / "sub" / "again").symlink_to(folder.path)
    with pytest.raises(OSError, match="symbolic links"):
        folder.digests.of(folder.path)


def test_a_file_that_changed_within_its_size_and_tick_is_read_again(folder: Folder) -> None:
    """What was written a moment ago is not remembered: the next write might leave the same times."""
    before = folder.digests.of(folder.path)["model.py"]
    status = (folder.path / "model.py").stat()
    (folder.path / "model.py").write_bytes(b"x = 2")
    os.utime(folder.path / "model.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder.digests.of(folder.path)["model.py"] != before


def test_a_file_that_has_not_changed_for_a_while_is_read_once(folder: Folder) -> None:
    reads: list[str] = []

    def read(path: Path) -> Digest:
        reads.append(path.name)
        return digest(path)

    digests = ArtifactDigests(read=read, clock_ns=lambda: time.time_ns() + 3_600_000_000_000)
    first = digests.of(folder.path)
    assert digests.of(folder.path) == first
    assert sorted(reads) == ["model.py", "weights"]
    (folder.path / "model.py").write_bytes(b"x = 2")
    assert digests.of(folder.path)["model.py"] != first["model.py"]
    assert sorted(reads) == ["model.py", "model.py", "weights"]


def test_a_key_says_what_it_is_for() -> None:
    key = make_key(backend="b", environment="e", artifacts={}, configuration={})
    assert str(key) == f"{key.environment}/{key.name}"
    assert astuple(key)[2:] == ("b", "e")
