"""Which directory is used, and which are refused."""

import os
from pathlib import Path

import pytest
from tests.unit.cache.loads import LIMIT, logged

from preheat.cache import CacheUnusable, locate, open_cache


def test_the_word_none_switches_the_cache_off() -> None:
    assert open_cache("none", max_bytes=LIMIT) is None


def test_the_default_is_the_users_own_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("auto", environment={}) == tmp_path / ".cache" / "preheat"
    assert locate("auto", environment={"XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/preheat")
    assert locate("auto", environment={"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / "preheat"
    assert locate("auto", environment={"XDG_CACHE_HOME": ""}) == tmp_path / ".cache" / "preheat"


def test_a_named_directory_may_be_relative_or_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert locate("~/here") == locate("here") == locate(str(tmp_path / "here")) == tmp_path / "here"


def test_a_directory_is_made_with_its_parents_and_for_its_user_only(tmp_path: Path) -> None:
    cache = open_cache(str(tmp_path / "a" / "b"), max_bytes=LIMIT)
    assert cache is not None
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    cache.close()


def _writable(path: Path, mode: int) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused_with_what_to_do(mode: int, tmp_path: Path) -> None:
    directory = _writable(tmp_path / "cache", mode)
    with pytest.raises(CacheUnusable, match=r"other users may write .* chmod 700 it, or name a folder in it"):
        open_cache(str(directory), max_bytes=LIMIT)
    cache = open_cache(str(directory / "own"), max_bytes=LIMIT)
    assert cache is not None
    cache.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    directory = _writable(tmp_path / "cache", 0o700)
    os.chown(directory, 12345, -1)
    with pytest.raises(CacheUnusable, match="belongs to user 12345"):
        open_cache(str(directory), max_bytes=LIMIT)


def test_a_directory_that_others_may_read_is_taken_as_it_is(tmp_path: Path) -> None:
    cache = open_cache(str(_writable(tmp_path / "cache", 0o755)), max_bytes=LIMIT)
    assert cache is not None
    cache.close()


def test_a_named_directory_that_cannot_be_is_refused_and_the_default_does_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheUnusable, match=f"the cache directory {tmp_path}/file/x cannot be used: Not a directory"):
        open_cache(str(tmp_path / "file" / "x"), max_bytes=LIMIT)
    with logged() as lines:
        assert open_cache("auto", max_bytes=LIMIT, environment={"XDG_CACHE_HOME": str(tmp_path / "file")}) is None
    (line,) = lines
    assert line.startswith(f"no compile cache: the cache directory {tmp_path}/file/preheat cannot be used")
    assert "--cache-dir" in line


def test_a_user_without_a_home_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with logged() as lines:
        assert open_cache("auto", max_bytes=LIMIT, environment={}) is None
    assert lines[0].startswith("no compile cache: auto: Could not determine home directory")
