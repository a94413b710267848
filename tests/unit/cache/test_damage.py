"""Damaged entries are never used: what is restored is what was stored, or the load is cold and the entry is gone."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.loads import CODE, LIMIT, RECORD, contents, key_of, logged, restored, store

from preheat.cache import CompileCache, Integrity, inventory, verify
from preheat.cache.manifest import Damaged, checksum, parse, render

FILES = ("manifest.json", *(f"files/{path}" for path in sorted(CODE)))
WHICH = st.sampled_from(FILES)


@pytest.fixture(scope="module")
def intact() -> Iterator[Path]:
    """A cache directory with one entry, to be copied."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "cache"
        directory.mkdir(mode=0o700)
        cache = CompileCache(directory, max_bytes=LIMIT)
        store(cache, key_of())
        cache.close()
        yield directory


def _flip(entry: Path, file: str, place: int, value: int) -> None:
    content = bytearray((entry / file).read_bytes())
    if content:
        content[place % len(content)] ^= value
        (entry / file).write_bytes(content)


def _truncate(entry: Path, file: str, place: int, _: int) -> None:
    os.truncate(entry / file, place % ((entry / file).stat().st_size + 1))


def _append(entry: Path, file: str, place: int, value: int) -> None:
    with (entry / file).open("ab") as opened:
        opened.write(bytes([value]) * (place % 5))


def _delete(entry: Path, file: str, place: int, __: int) -> None:
    if place % 4 == 0:
        shutil.rmtree((entry / file).parent)
    else:
        (entry / file).unlink()


def _add(entry: Path, file: str, place: int, value: int) -> None:
    (entry / f"{file}{value}").write_bytes(bytes(place % 7))


def _swap(entry: Path, file: str, place: int, _: int) -> None:
    other = FILES[place % len(FILES)]
    (entry / file).rename(entry / "aside")
    if other != file:
        (entry / other).rename(entry / file)
    (entry / "aside").rename(entry / other)


def _link(entry: Path, file: str, place: int, _: int) -> None:
    """A link, even to the very same bytes, could be to something else a moment later."""
    same = entry.parent.parent / "aside"
    same.write_bytes((entry / file).read_bytes())
    (entry / file).unlink()
    (entry / file).symlink_to((same, "/etc/passwd", "nowhere", ".")[place % 4])


def _replace(entry: Path, file: str, place: int, _: int) -> None:
    (entry / file).unlink()
    if place % 2:
        (entry / file).mkdir()
    else:
        os.mkfifo(entry / file)


def _zero(entry: Path, file: str, _: int, __: int) -> None:
    """A file whose size reached the disk, and whose content did not."""
    (entry / file).write_bytes(bytes((entry / file).stat().st_size))


DAMAGE: list[Callable[[Path, str, int, int], None]] = [
    _flip, _truncate, _append, _delete, _add, _swap, _link, _replace, _zero,
]  # fmt: skip


@settings(max_examples=300)
@given(damage=st.sampled_from(DAMAGE), file=WHICH, place=st.integers(0, 10_000), value=st.integers(1, 255))
def test_whatever_is_damaged_the_load_has_what_was_stored_or_nothing(
    damage: Callable[[Path, str, int, int], None], file: str, place: int, value: int, intact: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "cache"
        shutil.copytree(intact, directory)
        (entry,) = (each for each in directory.glob("torch*/*") if each.is_dir())
        damage(entry, file, place, value)
        _check_used_whole_or_not_at_all(directory)


def _check_used_whole_or_not_at_all(directory: Path) -> None:
    before = [verify(directory, entry).integrity for entry in inventory(directory)]
    cache = CompileCache(directory, max_bytes=LIMIT)
    with logged() as lines:
        found = restored(cache, key_of())
    if before == [Integrity.INTACT]:
        assert (found, lines) == (CODE, [])
    elif not before:
        assert (found, lines) == (None, [])
    else:
        (line,) = lines
        assert line.startswith(f"compile cache: dropped the damaged entry of {key_of()}: ")
        assert found is None
        assert inventory(directory) == []
    assert restored(cache, key_of()) == found
    cache.close()
    assert contents(directory / "work") == {}


@settings(max_examples=300)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_manifest_is_found_or_changes_nothing(place: int, bit: int, intact: Path) -> None:
    (path,) = intact.glob("torch*/*/manifest.json")
    content = bytearray(path.read_bytes())
    expected = parse(bytes(content))
    content[place % len(content)] ^= 1 << bit
    try:
        found = parse(bytes(content))
    except Damaged:
        return
    assert found == expected


def _rewrite(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the checksum that it then has."""
    (path,) = directory.glob("torch*/*/manifest.json")
    document = json.loads(path.read_bytes())
    change(document["entry"])
    document["sha256"] = checksum(document["entry"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "path",
    ["../escaped", "/escaped", "a/../../escaped", "..", ".", "", "a//b", "./a", "a/", "a\0b", "\ud800", 7, None],
)
def test_a_manifest_with_a_checksum_and_a_path_that_leads_elsewhere_is_damage(
    path: object, cache: CompileCache, directory: Path
) -> None:
    store(cache, key_of())
    _rewrite(directory, lambda entry: entry["files"].append([path, 0, "0" * 64, False]))
    with logged() as lines:
        assert restored(cache, key_of()) is None
    assert "dropped the damaged entry" in lines[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(format=2),
        lambda entry: entry.update(name="0" * 32),
        lambda entry: entry.update(environment="another"),
        lambda entry: entry.pop("record"),
        lambda entry: entry.update(record=[]),
        lambda entry: entry.update(created_s="yesterday"),
        lambda entry: entry.update(files={}),
        lambda entry: entry["files"].append(entry["files"][0]),
        lambda entry: entry["files"][0].append("more"),
        lambda entry: entry["files"][0].__setitem__(1, True),
        lambda entry: entry["files"][0].__setitem__(1, -1),
        lambda entry: entry["files"][0].__setitem__(2, "short"),
        lambda entry: entry["files"][0].__setitem__(3, 1),
    ],
)
def test_a_manifest_with_a_checksum_and_anything_else_that_cannot_be_is_damage(
    change: Callable[[dict[str, Any]], None], cache: CompileCache, directory: Path
) -> None:
    store(cache, key_of())
    _rewrite(directory, change)
    with logged() as lines:
        assert restored(cache, key_of()) is None
    assert "dropped the damaged entry" in lines[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"entry": NaN, "sha256": ""}'],
    ids=["empty", "no fields", "a list", "a number", "null", "no text", "deep", "NaN"],
)
def test_a_manifest_that_is_something_else_is_damage(content: bytes, cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    (path,) = directory.glob("torch*/*/manifest.json")
    path.write_bytes(content)
    with logged() as lines:
        assert restored(cache, key_of()) is None
    assert "dropped the damaged entry" in lines[0]


def test_an_entry_in_the_place_of_another_is_damage(cache: CompileCache, directory: Path) -> None:
    one, two = key_of("one"), key_of("two")
    store(cache, one)
    (directory / str(one)).rename(directory / str(two))
    with logged() as lines:
        assert restored(cache, two) is None
    assert f"manifest.json is that of {one}" in lines[0]


@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_what_is_no_folder_in_the_place_of_an_entry_is_damage(kind: str, cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    place = directory / str(key_of())
    place.rename(directory / "aside")
    if kind == "link":
        place.symlink_to(directory / "aside")
    elif kind == "file":
        place.write_bytes(b"")
    else:
        os.mkfifo(place)
    with logged() as lines:
        assert restored(cache, key_of()) is None
    assert "dropped the damaged entry" in lines[0]
    store(cache, key_of())
    assert restored(cache, key_of()) == CODE
    assert (directory / "aside" / "manifest.json").exists()


def test_the_log_says_what_was_damaged(cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    _flip(directory / str(key_of()), "files/libs/kernel.so", 5, 1)
    with logged() as lines, cache.open(key_of(), subject="bert/1"):
        pass
    expected = "compile cache: dropped the damaged entry of bert/1: {}: files/libs/kernel.so does not have its checksum"
    assert lines == [expected.format(key_of())]


def test_a_manifest_reads_back_as_what_was_rendered(intact: Path) -> None:
    (path,) = intact.glob("torch*/*/manifest.json")
    manifest = parse(path.read_bytes())
    assert render(manifest) == path.read_bytes()
    assert manifest.record == RECORD
