"""What the tests of the cache have other processes do. Each function here is the whole life of one process."""

import itertools
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from tests.unit.cache.loads import CODE, LIMIT, RECORD, contents, fill, key_of, logged

from preheat.cache import CompileCache, make_key
from preheat.cache.locks import try_lock

# Forked by a process that has one thread, so that nothing is held by a thread that the child lacks.
PROCESSES: ForkServerContext = multiprocessing.get_context("forkserver")
# Everything by which the cache changes what is on the disk.
_CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "utime")
OLD, NEW = CODE, {**CODE, "graph.py": b"another\n" * 99, "added/one": b"more"}


def load(directory: Path, barrier: Barrier, result: Connection) -> None:
    """Load at the same time as others do; send whether it was warm, and what was in the folder at last."""
    cache = CompileCache(directory, max_bytes=LIMIT)
    barrier.wait()
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        if not entry.warm:
            fill(entry.path, CODE)
            entry.store(RECORD)
        result.send((entry.warm, contents(entry.path)))
    cache.close()


def compile_until_told(directory: Path, control: Connection) -> None:
    """Hold an entry and say so; store it when told to."""
    cache = CompileCache(directory, max_bytes=LIMIT)
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        fill(entry.path, CODE)
        control.send("compiling")
        control.recv()
        entry.store(RECORD)
    cache.close()


def serve_until_told(directory: Path, control: Connection) -> None:
    """Have a model loaded; send what is left of its folder when told to."""
    cache = CompileCache(directory, max_bytes=LIMIT)
    with cache.open(key_of()) as entry:
        assert entry.path is not None
        control.send(str(entry.path))
        control.recv()
        control.send(contents(entry.path))
    cache.close()


def lock_and_fork(path: Path, control: Connection) -> None:
    """Hold a lock and have a child process, which lives on; send the child's number."""
    lock = try_lock(path)
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(begins, b"!")
            control.recv()
        finally:
            os._exit(0)
    os.read(begun, 1)
    control.send((lock is not None, child))
    signal.pause()


def store_until_killed(directory: Path, call: int) -> None:
    """Load, change what was loaded, store, and be killed at the ``call``-th thing that it does to the disk."""
    cache = CompileCache(directory, max_bytes=LIMIT)
    entry = cache.open(key_of())
    assert entry.path is not None
    fill(entry.path, NEW)
    _kill_at(call)
    entry.store(RECORD)
    entry.close()
    cache.close()


def _kill_at(call: int) -> None:
    calls = itertools.count(1)

    def deadly(name: str, real: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                if name == "write":  # half of it arrives
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return wrapper

    for name in _CALLS:
        setattr(os, name, deadly(name, getattr(os, name)))


def store_beyond_a_limit(directory: Path, result: Connection) -> None:
    """Store, and load, with a limit on the size of files that is like a full disk; send what the log said."""
    cache = CompileCache(directory, max_bytes=LIMIT)
    big = make_key(backend="double", environment="another", artifacts={}, configuration={})
    with logged() as lines, cache.open(big, subject="big/1") as entry:
        assert entry.path is not None
        fill(entry.path, {"big": bytes(5000)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        entry.store(RECORD)
        with cache.open(key_of(), subject="bert/1") as other:
            usable = other.path is not None
    result.send((lines, usable, contents(directory)))
    cache.close()


@contextmanager
def running(target: Any, *arguments: Any) -> Iterator[tuple[ForkServerProcess, Connection]]:
    """A process, and the connection that ``target`` gets after ``arguments``. It has ended when the block has."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        ours.close()
        process.join()
