"""Servers that share a directory: one compiles, none reads what is half there, and the dead are in nobody's way."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.unit.cache.loads import CODE, LIMIT, contents, key_of, restored, store
from tests.unit.cache.servers import (
    NEW,
    OLD,
    PROCESSES,
    compile_until_told,
    load,
    lock_and_fork,
    running,
    serve_until_told,
    store_beyond_a_limit,
    store_until_killed,
)

from preheat.cache import CompileCache, Integrity, inventory, remove, verify
from preheat.cache.locks import try_lock


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


@pytest.mark.parametrize("count", [2, 8])
def test_of_servers_that_start_at_once_on_an_empty_cache_one_compiles(count: int, directory: Path) -> None:
    barrier = PROCESSES.Barrier(count)
    with ExitStack() as stack:
        servers = [stack.enter_context(running(load, directory, barrier)) for _ in range(count)]
        results = [connection.recv() for _, connection in servers]
    assert sorted(warm for warm, _ in results) == [False] + [True] * (count - 1)
    assert all(found == CODE for _, found in results)
    assert contents(directory / "work") == {}


@contextmanager
def waiting_load(cache: CompileCache) -> Iterator[list[dict[str, bytes] | None]]:
    """A load on another thread: the block begins when it waits, and ends when it is done, with what it was given."""
    waits, found = threading.Event(), list[dict[str, bytes] | None]()
    handler = logging.Handler()
    handler.emit = lambda record: waits.set() if "waits for another" in record.getMessage() else None  # type: ignore[method-assign]
    logger = logging.getLogger("preheat.cache")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    thread = threading.Thread(target=lambda: found.append(restored(cache, key_of())))
    thread.start()
    try:
        waits.wait()
        yield found
    finally:
        thread.join()
        logger.removeHandler(handler)


def test_a_load_waits_for_the_server_that_compiles_and_is_warm(directory: Path) -> None:
    cache = CompileCache(directory, max_bytes=LIMIT)
    with running(compile_until_told, directory) as (_, control):
        assert control.recv() == "compiling"
        with waiting_load(cache) as found:
            assert found == []
            control.send("store")
    assert found == [CODE]
    cache.close()


def test_a_load_that_waits_for_a_server_that_is_killed_goes_on_cold(directory: Path) -> None:
    cache = CompileCache(directory, max_bytes=LIMIT)
    with running(compile_until_told, directory) as (process, control):
        assert control.recv() == "compiling"
        with waiting_load(cache) as found:
            process.kill()
    assert found == [None]
    cache.close()


def test_an_entry_that_another_server_fills_is_neither_removed_nor_called_damaged(directory: Path) -> None:
    cache = CompileCache(directory, max_bytes=LIMIT)
    store(cache, key_of())
    (entry,) = inventory(directory)
    held = try_lock(directory / f"{key_of()}.lock")
    assert held is not None
    assert not remove(directory, entry)
    assert verify(directory, entry).integrity is Integrity.IN_USE
    held.release()
    assert verify(directory, entry).integrity is Integrity.INTACT
    assert remove(directory, entry)
    assert inventory(directory) == []
    cache.close()
    assert [path.name for path in directory.iterdir()] == ["work"]


def test_a_server_that_starts_leaves_the_folders_of_those_that_run(directory: Path) -> None:
    first = CompileCache(directory, max_bytes=LIMIT)
    store(first, key_of())
    with running(serve_until_told, directory) as (_, control):
        control.recv()
        CompileCache(directory, max_bytes=LIMIT).close()
        control.send("look")
        assert control.recv() == CODE
    first.close()


def test_a_server_that_starts_removes_the_folders_of_those_that_were_killed(directory: Path) -> None:
    first = CompileCache(directory, max_bytes=LIMIT)
    store(first, key_of())
    with running(serve_until_told, directory) as (process, control):
        path = Path(control.recv())
        process.kill()
    assert contents(path) == CODE
    CompileCache(directory, max_bytes=LIMIT).close()
    assert not path.parent.exists()
    first.close()
    assert list((directory / "work").iterdir()) == []


def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    with running(lock_and_fork, tmp_path / "lock") as (process, control):
        held, child = control.recv()
        assert held
        assert try_lock(tmp_path / "lock") is None
        process.kill()
        process.join()
        lock = try_lock(tmp_path / "lock")
        os.kill(child, 0)  # it lives
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("before", [None, OLD], ids=["on an empty cache", "over an old entry"])
def test_a_server_killed_at_any_moment_of_storing_leaves_the_old_entry_the_new_one_or_none(
    before: dict[str, bytes] | None, directory: Path, tmp_path: Path
) -> None:
    if before is not None:
        cache = CompileCache(directory, max_bytes=LIMIT)
        store(cache, key_of(), before)
        cache.close()
    outcomes: list[dict[str, bytes] | None] = []
    exit_code: int = -signal.SIGKILL
    while exit_code == -signal.SIGKILL:
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
        process = PROCESSES.Process(target=store_until_killed, args=(copy, len(outcomes) + 1))
        process.start()
        process.join()
        exit_code = process.exitcode or 0
        outcomes.append(_after_a_crash(copy))
        shutil.rmtree(copy)
    assert exit_code == 0
    assert len(outcomes) > 40
    assert all(outcome in (before, NEW, None) for outcome in outcomes)
    assert (outcomes[0], outcomes[-1]) == (before, NEW)


def _after_a_crash(directory: Path) -> dict[str, bytes] | None:
    """What the next server finds. Nothing that it finds is damaged, and it leaves nothing else there."""
    assert all(verify(directory, entry).integrity is Integrity.INTACT for entry in inventory(directory))
    cache = CompileCache(directory, max_bytes=LIMIT)
    found = restored(cache, key_of())
    cache.close()
    leftovers = [path for path in directory.rglob("*") if path.name.startswith(".") or "work/" in str(path)]
    assert leftovers == []
    return found


def test_a_disk_that_is_full_costs_a_warning_and_what_was_stored_before_stays(directory: Path) -> None:
    cache = CompileCache(directory, max_bytes=LIMIT)
    store(cache, key_of())
    with running(store_beyond_a_limit, directory) as (_, result):
        lines, usable, left = result.recv()
    assert lines == [
        "compile cache: big/1 is not stored: [Errno 27] File too large",
        "compile cache: bert/1 is loaded without it: [Errno 27] File too large",
    ]
    assert not usable
    assert not [path for path in left if "incoming" in path]
    assert restored(cache, key_of()) == CODE
    cache.close()
