"""One load's share of the cache: a folder to load from, and the way to keep what the load left there."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preheat.cache import files, storage
from preheat.cache.keys import CacheKey
from preheat.cache.layout import Slot, hold
from preheat.cache.locks import HeldLock
from preheat.cache.manifest import Manifest
from preheat.cache.storage import NotStorable, Worth

log = logging.getLogger(__name__)

# For a lock that is only ever held for long by those that compile, and then there is nothing to keep.
_BRIEF_S = 0.5


@dataclass(frozen=True, slots=True)
class Claim:
    """What a load asked for: the key and its place, what is worth storing, and what to call it in the log."""

    key: CacheKey
    slot: Slot
    worth: Worth
    subject: str
    max_bytes: int


class Entry:
    """Belongs to whoever loads the model, then to the model; its methods must not be called from two threads at once.

    ``path`` is the private folder to load from, there until :meth:`close`; None if the cache cannot be used, which has
    been logged: then nothing here does anything. ``warm``: the folder was filled with what was stored for the key.
    ``record`` is what was stored with it, empty if it is not warm.

    Until it is stored, released or closed, an entry that is not warm holds its lock: other loads of the same, in this
    process and in others, wait for it.
    """

    def __init__(
        self,
        claim: Claim,
        path: Path | None,
        *,
        lock: HeldLock | None = None,
        manifest: Manifest | None = None,
        stored: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.warm = manifest is not None
        self.record: Mapping[str, Any] = manifest.record if manifest else {}
        self._claim = claim
        self._lock = lock
        self._manifest = manifest
        self._stored = stored

    @property
    def grown(self) -> bool:
        """Whether the folder has files that were not restored to it. False if it cannot be read."""
        if self.path is None or self._manifest is None:
            return False
        try:
            return storage.adds(self._manifest, self.path, worth=self._claim.worth)
        except OSError:
            return False

    def store(self, record: Mapping[str, Any]) -> None:
        """Keep what is in the folder, with ``record``, and let others have it. Call it once the model is warm.

        Where nothing was added to what was restored, only the time of the last use changes. Slow: hashes, copies and
        syncs. A disk that is full or read-only costs a line in the log. Raises TypeError or ValueError for a record
        that is no JSON.
        """
        if self.path is None:
            return
        try:
            changed = self._store(self.path, record)
        except (OSError, NotStorable) as exc:
            log.warning("compile cache: %s is not stored: %s", self._claim.subject, exc)
        else:
            if changed:
                self._stored()
        finally:
            self._unlock()

    def release(self) -> None:
        """Let others have the entry, with nothing stored; the folder stays until :meth:`close`."""
        self._unlock()

    def discard(self, reason: str) -> None:
        """Drop what is stored for the key: a load from it failed, and the next one is to start cold."""
        if self.path is None:
            return
        try:
            if self._locked():
                storage.drop(self._claim.slot)
                log.warning("compile cache: dropped the entry of %s: %s", self._claim.subject, reason)
        except OSError as exc:
            log.warning("compile cache: the entry of %s cannot be dropped: %s", self._claim.subject, exc)
        finally:
            self._unlock()

    def close(self) -> None:
        """Remove the folder and let others have the entry. Call it when nothing of it is in use; idempotent."""
        self._unlock()
        path, self.path = self.path, None
        if path is None:
            return
        try:
            files.remove(path)
        except OSError as exc:
            log.warning("compile cache: %s stays until the next start: %s", path, exc)

    def __enter__(self) -> "Entry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _store(self, path: Path, record: Mapping[str, Any]) -> bool:
        claim = self._claim
        if self._manifest and claim.slot.occupied and storage.holds(self._manifest, path, worth=claim.worth):
            storage.touch(claim.slot)
            return False
        if not self._locked():
            log.info("compile cache: %s is not stored: another process is at its entry", claim.subject)
            return False
        self._manifest = storage.save(
            claim.slot, path, key=claim.key, record=record, worth=claim.worth, max_bytes=claim.max_bytes
        )
        log.info("compile cache: stored %s: %d bytes", claim.subject, self._manifest.size)
        return True

    def _locked(self) -> bool:
        if self._lock is None:
            self._lock = hold(self._claim.slot, limit_s=_BRIEF_S)
        return self._lock is not None

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
