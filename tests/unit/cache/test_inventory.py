"""What there is, and that it stays within its bounds: what was not used for longest goes, what is in use stays."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cache.loads import CODE, LIMIT, RECORD, contents, fill, key_of, logged, restored, store

from preheat.cache import CompileCache, Integrity, StoredEntry, inventory, make_key, prune
from preheat.cache.locks import try_lock

SIZE = sum(map(len, CODE.values()))
HOUR = 3600


def store_at(cache: CompileCache, directory: Path, name: str, hour: int) -> None:
    """Store an entry that was last used at an hour since 1970."""
    store(cache, key_of(name))
    os.utime(directory / str(key_of(name)) / "manifest.json", (hour * HOUR, hour * HOUR))


def names(directory: Path) -> list[str]:
    known = {key_of(name).name: name for name in "abcdef"}
    return [known[entry.name] for entry in inventory(directory)]


def test_every_entry_is_listed_the_last_used_first_with_what_is_known_of_it(
    cache: CompileCache, directory: Path
) -> None:
    store_at(cache, directory, "a", 1)
    store_at(cache, directory, "b", 3)
    store_at(cache, directory, "c", 2)
    assert names(directory) == ["b", "c", "a"]
    entry = inventory(directory)[0]
    assert (entry.size, entry.files, entry.used_s, entry.record) == (SIZE, len(CODE), 3 * HOUR, RECORD)
    assert (entry.backend, entry.environment_text) == ("double", "torch 2.13, AVX512")
    assert entry.created_s is not None
    assert entry.created_s > entry.used_s
    assert (entry.integrity, entry.damage) == (Integrity.UNCHECKED, None)


def test_an_entry_without_a_readable_manifest_is_listed_as_damaged(cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    (directory / str(key_of()) / "manifest.json").write_bytes(b"{")
    (entry,) = inventory(directory)
    assert (entry.integrity, entry.size, entry.files) == (Integrity.DAMAGED, SIZE, len(CODE))
    assert entry.damage is not None
    assert entry.damage.startswith("manifest.json cannot be read")


def test_a_use_is_a_load(cache: CompileCache, directory: Path) -> None:
    for hour, name in enumerate("abc"):
        store_at(cache, directory, name, hour)
    assert restored(cache, key_of("a")) == CODE
    assert names(directory) == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("limit", "left"), [(3 * SIZE, "cba"), (3 * SIZE - 1, "cb"), (2 * SIZE, "cb"), (SIZE, "c"), (0, "")]
)
def test_what_was_not_used_for_longest_goes_until_the_rest_fits(
    limit: int, left: str, cache: CompileCache, directory: Path
) -> None:
    for hour, name in enumerate("abc"):
        store_at(cache, directory, name, hour)
    gone = list(prune(directory, max_bytes=limit))
    assert names(directory) == list(left)
    assert [entry.name for entry in gone] == [key_of(name).name for name in "abc" if name not in left]


def test_an_entry_that_is_in_use_stays_and_others_go_for_it(cache: CompileCache, directory: Path) -> None:
    for hour, name in enumerate("abc"):
        store_at(cache, directory, name, hour)
    lock = try_lock(directory / f"{key_of('a')}.lock")
    assert lock is not None
    list(prune(directory, max_bytes=SIZE))
    assert names(directory) == ["a"]
    lock.release()


def test_a_store_keeps_the_cache_within_its_bounds(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    cache = CompileCache(directory, max_bytes=2 * SIZE)
    store_at(cache, directory, "a", 1)
    store_at(cache, directory, "b", 2)
    with logged() as lines:
        store(cache, key_of("c"))
    assert names(directory) == ["c", "b"]
    assert lines == [
        f"compile cache: stored {key_of('c')}: {SIZE} bytes",
        f"compile cache: removed {key_of('a')}, unused for longest, to keep to --cache-max-bytes",
    ]
    cache.close()


def test_what_is_larger_than_the_cache_may_be_is_not_stored_and_nothing_goes_for_it(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    cache = CompileCache(directory, max_bytes=SIZE)
    store(cache, key_of("a"))
    with logged() as lines, cache.open(key_of("b"), subject="bert/1") as entry:
        assert entry.path is not None
        fill(entry.path, {**CODE, "more": b"1"})
        entry.store(RECORD)
    assert lines == [
        f"compile cache: bert/1 is not stored: it has {SIZE + 1} bytes, and --cache-max-bytes allows {SIZE}"
    ]
    assert names(directory) == ["a"]
    cache.close()


def test_of_an_environment_without_entries_no_folder_is_left(cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    list(prune(directory, max_bytes=0))
    assert [path.name for path in directory.iterdir()] == ["work"]
    store(cache, key_of())
    assert restored(cache, key_of()) == CODE


def test_a_load_that_failed_leaves_no_lock_behind_once_a_server_starts(cache: CompileCache, directory: Path) -> None:
    with cache.open(key_of()):
        pass
    assert (directory / f"{key_of()}.lock").exists()
    CompileCache(directory, max_bytes=LIMIT).close()
    assert [path.name for path in directory.iterdir()] == ["work"]


@given(used=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), max_size=8), limit=st.integers(0, 300))
def test_pruning_takes_the_least_recently_used_and_not_one_more_than_it_must(
    used: list[tuple[int, int]], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("cache", numbered=True)
    for number, (hour, size) in enumerate(used):
        entry = directory / "torch-12345678" / f"{number:032x}"
        (entry / "files").mkdir(parents=True)
        (entry / "files" / "code").write_bytes(bytes(size))
        (entry / "manifest.json").write_bytes(b"")
        os.utime(entry / "manifest.json", (hour, hour))
    before = inventory(directory)
    gone = list(prune(directory, max_bytes=limit))
    left = inventory(directory)
    assert [*left, *reversed(gone)] == before
    assert sum(entry.size for entry in left) <= limit
    assert not gone or sum(entry.size for entry in [*left, gone[-1]]) > limit


def test_what_is_not_the_caches_is_left_alone_wherever_the_cache_is_put(directory: Path) -> None:
    """Somebody may name a directory that has other uses, and prune it."""
    for path in ("work/thesis/chapter", "work/notes.lock", "photos/2024/cat", "photos-12345678/2024", ".incoming-x"):
        fill(directory, {path: b"precious"})
    fill(directory, {f"photos/{'0' * 32}/cat": b"precious", "torch-12345678/0123.lock": b"precious"})
    before = contents(directory)
    directory.chmod(0o700)
    cache = CompileCache(directory, max_bytes=LIMIT)
    store(cache, key_of())
    list(prune(directory, max_bytes=0))
    cache.close()
    assert contents(directory) == before


def test_an_entrys_key_is_where_it_stands() -> None:
    key = make_key(backend="b", environment="e", artifacts={}, configuration={})
    assert StoredEntry(key.environment, key.name, 0, 0, 0.0).key == str(key)
