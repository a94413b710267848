"""Locks between processes, which the kernel frees when their holder dies."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_POLL_S = 0.05
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class HeldLock:
    """A lock that is held, by construction, until it is released. Excludes other processes and other threads alike.

    Belongs to whoever asked for it; its methods must not be called from two threads at once.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        with _HELD_LOCK:
            _HELD.add(self)

    def release(self) -> None:
        """Let the next one have it. Does nothing the second time."""
        with _HELD_LOCK:
            _HELD.discard(self)
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # Not by closing alone: a child process may have a copy of the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def remove(self) -> None:
        """Release it, and remove its file: who waits for it makes a new one. Raises OSError, released all the same."""
        try:
            if self._descriptor >= 0:
                self.path.unlink(missing_ok=True)
        finally:
            self.release()

    def abandon(self) -> None:
        """In a forked child: close the copy, which would hold the lock for as long as the child lives."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


_HELD: set[HeldLock] = set()
_HELD_LOCK = threading.Lock()


def _after_fork() -> None:
    global _HELD_LOCK  # noqa: PLW0603 - the parent's may have been held by a thread that the child does not have
    _HELD_LOCK = threading.Lock()
    for lock in _HELD:
        lock.abandon()
    _HELD.clear()


os.register_at_fork(after_in_child=_after_fork)


def try_lock(path: Path) -> HeldLock | None:
    """The lock on the file ``path``, which is made if need be; None if anyone holds it. Raises OSError."""
    while True:
        descriptor = os.open(path, _OPEN, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = _is_at(descriptor, path)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            return HeldLock(path, descriptor)
        # The file was removed between being opened and being locked: the lock is on a file that no one else will see.
        os.close(descriptor)


def wait_for_lock(path: Path, *, limit_s: float | None, announce: Callable[[], None]) -> HeldLock | None:
    """The lock on ``path``, waiting for it for up to ``limit_s`` (None: without limit); None if that was not enough.

    ``announce`` is called once if it has to wait for more than a moment. Raises OSError.
    """
    pause = threading.Event()
    started_s = time.monotonic()
    attempts = 0
    while (lock := try_lock(path)) is None:
        attempts += 1
        if limit_s is not None and time.monotonic() - started_s >= limit_s:
            return None
        # The first time it may be a server that looks whether anything is left to be swept.
        if attempts == 2:
            announce()
        # flock itself cannot wait for a limited time.
        pause.wait(_POLL_S)
    return lock


def _is_at(descriptor: int, path: Path) -> bool:
    ours = os.fstat(descriptor)
    try:
        theirs = path.lstat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
