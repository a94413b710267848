"""What a cache directory holds, for people and for keeping it bounded."""

import enum
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from preheat.cache import storage
from preheat.cache.files import read_tree
from preheat.cache.layout import Slot, entries, remove_empty
from preheat.cache.locks import try_lock
from preheat.cache.manifest import Damaged


class Integrity(enum.Enum):
    """Whether an entry is what was stored, as far as anybody looked."""

    UNCHECKED = "unchecked"
    INTACT = "intact"
    DAMAGED = "damaged"
    IN_USE = "in use"


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry as it stands on the disk: times are seconds since 1970, ``size`` is what its files take, in bytes.

    ``damage`` says what is wrong with one that is DAMAGED; its manifest may have nothing to say of the rest.
    """

    environment: str
    name: str
    size: int
    files: int
    used_s: float
    created_s: float | None = None
    backend: str | None = None
    environment_text: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    integrity: Integrity = Integrity.UNCHECKED
    damage: str | None = None

    @property
    def key(self) -> str:
        """Where it stands below the cache directory."""
        return f"{self.environment}/{self.name}"


def inventory(directory: Path) -> list[StoredEntry]:
    """Every entry, the last used first, with what its manifest says. Files are not checked. Raises OSError."""
    found = [entry for slot in entries(directory) if (entry := _describe(slot))]
    return sorted(found, key=lambda entry: (-entry.used_s, entry.key))


def verify(directory: Path, entry: StoredEntry) -> StoredEntry:
    """The entry with its integrity, every byte looked at, unless somebody is at it just now. Raises OSError."""
    slot = _slot(directory, entry)
    lock = try_lock(slot.lock_path)
    if lock is None:
        return replace(entry, integrity=Integrity.IN_USE)
    try:
        storage.verify(slot)
    except Damaged as exc:
        return replace(entry, integrity=Integrity.DAMAGED, damage=str(exc))
    finally:
        lock.release()
    return replace(entry, integrity=Integrity.INTACT)


def remove(directory: Path, entry: StoredEntry) -> bool:
    """Remove an entry, unless somebody is at it just now; whether it is gone. Raises OSError."""
    slot = _slot(directory, entry)
    lock = try_lock(slot.lock_path)
    if lock is None:
        return False
    try:
        storage.drop(slot)
    except BaseException:
        lock.release()
        raise
    lock.remove()
    remove_empty(slot.environment_path)
    return True


def prune(
    directory: Path, *, max_bytes: int, remove: Callable[[Path, StoredEntry], bool] = remove
) -> Iterator[StoredEntry]:
    """Remove entries, the last used last, until the others take at most ``max_bytes``; those that went.

    An entry that ``remove`` leaves, because somebody is at it just now, stays. Raises OSError.
    """
    found = inventory(directory)
    total = sum(entry.size for entry in found)
    for entry in reversed(found):
        if total <= max_bytes:
            return
        if remove(directory, entry):
            total -= entry.size
            yield entry


def _slot(directory: Path, entry: StoredEntry) -> Slot:
    return Slot(directory / entry.environment, entry.name)


def _describe(slot: Slot) -> StoredEntry | None:
    """None if the entry went while it was looked at."""
    try:
        used_s = slot.path.lstat().st_mtime
    except FileNotFoundError:
        return None
    sizes: list[int] = []
    with suppress(OSError):  # what is damaged is described as far as it goes
        sizes = [status.st_size for path, status in read_tree(slot.path).files.items() if path != "manifest.json"]
        used_s = slot.manifest_path.lstat().st_mtime
    entry = StoredEntry(slot.environment_path.name, slot.name, sum(sizes), len(sizes), used_s)
    try:
        manifest = storage.read_manifest(slot)
    except Damaged as exc:
        return replace(entry, integrity=Integrity.DAMAGED, damage=str(exc))
    return replace(
        entry,
        created_s=manifest.created_s,
        backend=manifest.backend,
        environment_text=manifest.environment_text,
        record=manifest.record,
    )
