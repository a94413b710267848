"""What one load is given, and what it leaves for the next."""

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
from tests.unit.cache.loads import CODE, LIMIT, RECORD, contents, fill, key_of, logged, restored, store

from preheat.cache import CompileCache, inventory, open_cache, remove


def test_what_a_load_left_is_there_for_the_next_with_its_record(cache: CompileCache) -> None:
    assert restored(cache, key_of()) is None
    store(cache, key_of())
    assert restored(cache, key_of()) == CODE
    assert restored(cache, key_of("two")) is None
    assert restored(cache, key_of(environment="torch 2.14")) is None


def test_an_entry_outlives_the_server(directory: Path) -> None:
    for expected in (None, CODE):
        server = open_cache(str(directory), max_bytes=LIMIT)
        assert server is not None
        assert restored(server, key_of()) == expected
        store(server, key_of())
        server.close()
    assert contents(directory / "work") == {}


def test_a_load_that_failed_leaves_nothing(cache: CompileCache, directory: Path) -> None:
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        fill(entry.path, CODE)
    assert restored(cache, key_of()) is None
    assert inventory(directory) == []


def test_the_folder_is_private_and_goes_when_it_is_closed(cache: CompileCache, directory: Path) -> None:
    entry = cache.open(key_of())
    path = entry.path
    assert path is not None
    for folder in (directory, *path.parents[:2], path):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    entry.close()
    entry.close()
    assert entry.path is None
    assert not path.exists()


def test_nothing_stored_may_be_read_by_others_and_what_ran_may_run(cache: CompileCache, directory: Path) -> None:
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        fill(entry.path, CODE)
        (entry.path / "libs" / "kernel.so").chmod(0o755)
        entry.store(RECORD)
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in entry.path.rglob("*") if path.is_file()}
    assert modes == {"graph.py": 0o600, "kernel.so": 0o700, "empty": 0o600, "best_config": 0o600}
    for path in (each for each in directory.rglob("*") if each.name != "work"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_running_model_keeps_its_files_whatever_becomes_of_the_stored_ones(
    cache: CompileCache, directory: Path
) -> None:
    store(cache, key_of())
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        for path in directory.glob("torch*/*/files/**/*"):
            if path.is_file():
                path.write_bytes(b"overwritten")
        assert contents(entry.path) == CODE


def test_storing_what_was_restored_changes_the_time_of_use_only(cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    (manifest,) = directory.glob("torch*/*/manifest.json")
    before = manifest.read_bytes()
    with cache.open(key_of()) as entry:
        os.utime(manifest, (1, 1))
        entry.store({"another": "record"})
    assert manifest.read_bytes() == before
    assert manifest.stat().st_mtime > 1


@pytest.mark.parametrize(
    "change",
    [{"graph.py": b"changed"}, {"new": b"file"}, {"libs/kernel.so": CODE["libs/kernel.so"][::-1]}],
    ids=["changed", "added", "changed in place"],
)
def test_what_a_warm_load_adds_or_changes_is_there_for_the_next(cache: CompileCache, change: dict[str, bytes]) -> None:
    store(cache, key_of())
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        fill(entry.path, change)
        entry.store(entry.record)
    assert restored(cache, key_of()) == {**CODE, **change}


def test_what_a_warm_load_removes_is_gone_for_the_next(cache: CompileCache) -> None:
    store(cache, key_of())
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        shutil.rmtree(entry.path / "deep")
        entry.store(RECORD)
    assert restored(cache, key_of()) == {path: content for path, content in CODE.items() if "deep" not in path}


def test_an_entry_that_was_removed_during_a_warm_load_is_stored_again(cache: CompileCache, directory: Path) -> None:
    store(cache, key_of())
    with cache.open(key_of()) as entry:
        assert [remove(directory, each) for each in inventory(directory)] == [True]
        entry.store(RECORD)
    assert restored(cache, key_of()) == CODE


def test_an_entry_can_be_stored_again_when_more_is_compiled_later(cache: CompileCache) -> None:
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        fill(entry.path, CODE)
        entry.store(RECORD)
        fill(entry.path, {"more": b"shapes"})
        entry.store(RECORD)
    assert restored(cache, key_of()) == {**CODE, "more": b"shapes"}


def test_files_not_worth_storing_are_not_stored_and_their_coming_and_going_is_no_change(
    cache: CompileCache, directory: Path
) -> None:
    patterns = ("locks/**", "*.tmp")
    noise = {"locks/a/b.lock": b"", "libs/x.tmp": b"half"}
    with cache.open(key_of(), ignored=patterns) as entry:
        assert entry.path is not None
        fill(entry.path, {**CODE, **noise})
        (entry.path / "locks" / "link").symlink_to("a")
        entry.store(RECORD)
    (manifest,) = directory.glob("torch*/*/manifest.json")
    before = manifest.read_bytes()
    assert restored(cache, key_of()) == CODE
    with cache.open(key_of(), ignored=patterns) as entry:
        assert entry.path is not None
        fill(entry.path, noise)
        entry.store(RECORD)
    assert manifest.read_bytes() == before


def test_a_link_that_a_backend_leaves_keeps_the_entry_from_being_stored(cache: CompileCache) -> None:
    with logged() as lines, cache.open(key_of(), subject="bert/1") as entry:
        assert entry.path is not None
        fill(entry.path, CODE)
        (entry.path / "libcuda.so").symlink_to("/usr/lib/libcuda.so.1")
        entry.store(RECORD)
    assert lines == [
        "compile cache: bert/1 is not stored: libcuda.so is no regular file, and an entry without it would not be whole"
    ]
    assert restored(cache, key_of()) is None


@pytest.mark.parametrize("record", [{"x": float("nan")}, {"x": object()}])
def test_a_record_that_is_no_json_is_a_defect_and_leaves_nothing(
    record: dict[str, object], cache: CompileCache, directory: Path
) -> None:
    with cache.open(key_of()) as entry, pytest.raises((TypeError, ValueError)):
        entry.store(record)
    assert [path.name for path in directory.glob("torch*/.*")] == []
    assert restored(cache, key_of()) is None


def test_a_discarded_entry_is_cold_for_the_next(cache: CompileCache) -> None:
    store(cache, key_of())
    with logged() as lines, cache.open(key_of(), subject="bert/1") as entry:
        assert entry.warm
        entry.discard("its kernel.so cannot be loaded")
    assert lines == ["compile cache: dropped the entry of bert/1: its kernel.so cannot be loaded"]
    assert restored(cache, key_of()) is None


def test_a_second_load_of_the_same_in_one_process_waits_and_finds_the_entry(cache: CompileCache) -> None:
    found: list[dict[str, bytes] | None] = []
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        second = threading.Thread(target=lambda: found.append(restored(cache, key_of())))
        second.start()
        fill(entry.path, CODE)
        assert found == []
        entry.store(RECORD)
        second.join()
    assert found == [CODE]


def test_loads_that_are_warm_do_not_wait_for_each_other(cache: CompileCache) -> None:
    store(cache, key_of())
    with cache.open(key_of()) as one, cache.open(key_of(), wait_s=0) as other:
        assert one.warm
        assert other.warm
        assert one.path != other.path


def test_a_load_that_has_waited_long_enough_goes_on_cold_and_leaves_the_entry_to_the_other(cache: CompileCache) -> None:
    with cache.open(key_of()) as first:
        assert first.path is not None
        fill(first.path, CODE)
        with logged() as lines, cache.open(key_of(), subject="bert/1", wait_s=0.1) as second:
            assert second.path is not None
            assert not second.warm
            second.store({"model": "second"})
        assert lines == [
            "compile cache: bert/1 waits for another load of the same, which compiles",
            "compile cache: bert/1 waited for 0.1 s, and is loaded without what it waited for",
            "compile cache: bert/1 is not stored: another process is at its entry",
        ]
        first.store(RECORD)
    assert restored(cache, key_of()) == CODE


def test_a_cache_that_goes_away_under_a_server_costs_a_warning(cache: CompileCache, directory: Path) -> None:
    (directory / "work").rename(directory / "gone")
    with logged() as lines, cache.open(key_of(), subject="bert/1") as entry:
        assert (entry.path, entry.warm, entry.record) == (None, False, {})
        entry.store(RECORD)
        entry.discard("anything")
    (line,) = lines
    assert line.startswith("compile cache: bert/1 is loaded without it: [Errno 2] No such file or directory")
    (directory / "gone").rename(directory / "work")
    # Nothing is held: the next load of the same neither waits nor fails.
    store(cache, key_of())
    assert restored(cache, key_of()) == CODE


def test_a_file_in_the_way_of_an_environment_costs_a_warning(cache: CompileCache, directory: Path) -> None:
    (directory / key_of().environment).write_bytes(b"")
    with logged() as lines, cache.open(key_of()) as entry:
        assert entry.path is None
    assert len(lines) == 1
