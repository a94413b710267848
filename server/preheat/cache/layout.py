"""Where things are in a cache directory.

ENVIRONMENT/KEY is an entry, and ENVIRONMENT/KEY.lock its lock, which whoever changes the entry holds. Before an entry
is one it is ENVIRONMENT/.incoming-KEY, and after it was one ENVIRONMENT/.outgoing-KEY. What servers load from is in
work/OWNER, each owner alive for as long as work/OWNER.lock is held.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from preheat.cache.files import PRIVATE_FOLDER, remove
from preheat.cache.locks import HeldLock, try_lock, wait_for_lock

_WORK = "work"
_LOCK = ".lock"
_INCOMING, _OUTGOING = ".incoming-", ".outgoing-"
# What is named otherwise is not ours, and none of our business: somebody may name a directory that has other uses.
_ENVIRONMENT_NAME = re.compile(r"[a-z0-9.-]+-[0-9a-f]{8}")
_ENTRY_NAME = re.compile(r"(?:\.incoming-|\.outgoing-)?([0-9a-f]{32})(?:\.lock)?")
_OWNER_NAME = re.compile(r"([0-9]+-[0-9a-f]{8})(?:\.lock)?")


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one entry, which may be empty."""

    environment_path: Path
    name: str

    @property
    def path(self) -> Path:
        """The entry."""
        return self.environment_path / self.name

    @property
    def manifest_path(self) -> Path:
        """Its manifest, whose time of modification is that of the entry's last use."""
        return self.path / "manifest.json"

    @property
    def files_path(self) -> Path:
        """The folder of its files."""
        return self.path / "files"

    @property
    def lock_path(self) -> Path:
        """Its lock."""
        return self.environment_path / f"{self.name}{_LOCK}"

    @property
    def incoming(self) -> "Slot":
        """The place where the entry is put together. Only the lock's holder uses it."""
        return Slot(self.environment_path, f"{_INCOMING}{self.name}")

    @property
    def outgoing(self) -> Path:
        """The place where the entry is taken apart. Only the lock's holder uses it."""
        return self.environment_path / f"{_OUTGOING}{self.name}"

    @property
    def occupied(self) -> bool:
        """Whether anything is there, whole or damaged."""
        return os.path.lexists(self.path)

    def __str__(self) -> str:
        return f"{self.environment_path.name}/{self.name}"


def work_path(directory: Path) -> Path:
    """The folder of the folders that servers load from."""
    return directory / _WORK


def owner_lock_path(directory: Path, owner: str) -> Path:
    """The lock that says that ``owner`` is alive."""
    return work_path(directory) / f"{owner}{_LOCK}"


def hold(slot: Slot, *, limit_s: float | None, announce: Callable[[], None] = lambda: None) -> HeldLock | None:
    """The lock of ``slot``, which nothing need be in; as :func:`preheat.cache.locks.wait_for_lock`."""
    while True:
        slot.environment_path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder was empty, and somebody has just removed it
            return wait_for_lock(slot.lock_path, limit_s=limit_s, announce=announce)


def entries(directory: Path) -> list[Slot]:
    """Every place that holds an entry, whole or damaged. Raises OSError."""
    return [slot for environment in _environments(directory) for slot in _slots(environment) if slot.occupied]


def sweep(directory: Path) -> None:
    """Remove what processes left that died: half an entry, a folder they loaded from. Raises OSError.

    What is in use is told by its lock, which the kernel freed with its holder, and by nothing else: process numbers
    say nothing across containers.
    """
    for environment in _environments(directory):
        for slot in _slots(environment):
            if not slot.occupied or slot.incoming.occupied or os.path.lexists(slot.outgoing):
                _sweep_slot(slot)
        remove_empty(environment)
    work = work_path(directory)
    for owner in _named(work, _OWNER_NAME):
        _sweep_owner(directory, owner)


def remove_empty(environment: Path) -> None:
    """Remove the folder of an environment of which nothing is left."""
    with suppress(OSError):
        environment.rmdir()


def _environments(directory: Path) -> Iterator[Path]:
    for each in sorted(directory.iterdir()):
        if _ENVIRONMENT_NAME.fullmatch(each.name) and each.is_dir():
            yield each


def _slots(environment: Path) -> list[Slot]:
    try:
        return [Slot(environment, name) for name in _named(environment, _ENTRY_NAME)]
    except FileNotFoundError:  # removed since it was listed
        return []


def _named(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    return sorted({match[1] for each in folder.iterdir() if (match := pattern.fullmatch(each.name))})


def _sweep_slot(slot: Slot) -> None:
    lock = try_lock(slot.lock_path)
    if lock is None:
        return
    try:
        remove(slot.incoming.path)
        remove(slot.outgoing)
    finally:
        if slot.occupied:
            lock.release()
        else:
            lock.remove()


def _sweep_owner(directory: Path, owner: str) -> None:
    lock = try_lock(owner_lock_path(directory, owner))
    if lock is None:
        return
    try:
        remove(work_path(directory) / owner)
    finally:
        lock.remove()
