"""The cache as a server has it: open for as long as the server runs."""

import itertools
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from preheat.cache import files, storage
from preheat.cache.entry import Claim, Entry
from preheat.cache.inventory import prune
from preheat.cache.keys import ArtifactDigests, CacheKey, make_key
from preheat.cache.layout import Slot, hold, owner_lock_path, sweep, work_path
from preheat.cache.locks import HeldLock, wait_for_lock
from preheat.cache.manifest import Damaged, Manifest

log = logging.getLogger(__name__)


class CompileCache:
    """A cache directory in use by this process. Any thread may call it.

    Made, it has removed what dead processes left there. Raises OSError if the directory cannot be used.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._artifacts = ArtifactDigests()
        self._numbers = itertools.count(1)
        # The number is for people to read; what says that its owner is alive is the lock.
        owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._work = work_path(directory) / owner
        work_path(directory).mkdir(mode=files.PRIVATE_FOLDER, exist_ok=True)
        self._lock = _own(owner_lock_path(directory, owner))
        try:
            self._work.mkdir(mode=files.PRIVATE_FOLDER)
        except OSError:
            self._lock.remove()
            raise
        try:
            sweep(directory)
        except OSError as exc:
            log.warning("compile cache: what dead processes left stays: %s", exc)

    def key(self, *, backend: str, environment: str, folder: Path, configuration: Mapping[str, Any]) -> CacheKey:
        """The key for what ``backend`` makes of the version folder ``folder`` under ``configuration``.

        Reads every file of the folder that this process has not read before. Raises OSError, and TypeError or
        ValueError for a configuration that is no JSON.
        """
        return make_key(
            backend=backend,
            environment=environment,
            artifacts=self._artifacts.of(folder),
            configuration=configuration,
        )

    def open(
        self,
        key: CacheKey,
        *,
        subject: str | None = None,
        ignored: Sequence[str] = (),
        wait_s: float | None = None,
    ) -> Entry:
        """An entry to load from, once no one else fills it.

        Waits for up to ``wait_s`` seconds (None: without limit) for another load of the same, then goes on without
        what that stores. ``subject`` is what the log calls it. ``ignored`` are patterns of files not worth storing, in
        which ``*`` stands for slashes too. Never fails for what is on the disk: an entry that is damaged is dropped,
        and a cache that cannot be used gives an entry without a path; both are logged.
        """
        claim = Claim(
            key,
            Slot(self._directory / key.environment, key.name),
            lambda path: not any(fnmatchcase(path, pattern) for pattern in ignored),
            subject or str(key),
            self._max_bytes,
        )
        lock: HeldLock | None = None
        try:
            lock = _hold(claim, wait_s)
            return self._open(claim, lock)
        except BaseException as exc:
            if lock is not None:
                lock.release()
            if not isinstance(exc, OSError):
                raise
            log.warning("compile cache: %s is loaded without it: %s", claim.subject, exc)
            return Entry(claim, None)

    def close(self) -> None:
        """Remove the folders that entries of this process still have. No entry may be in use. Raises OSError."""
        try:
            files.remove(self._work)
        finally:
            self._lock.remove()

    def _open(self, claim: Claim, lock: HeldLock | None) -> Entry:
        path = self._new_folder(claim.key)
        manifest: Manifest | None = None
        try:
            manifest = storage.restore(claim.slot, path) if lock else None
        except Damaged as exc:
            files.remove(path)
            path = self._new_folder(claim.key)
            log.warning("compile cache: dropped the damaged entry of %s: %s: %s", claim.subject, claim.key, exc)
            storage.drop(claim.slot)
        except BaseException:
            files.remove(path)
            raise
        if manifest and lock:
            storage.touch(claim.slot)
            # Others may restore it at the same time; only those that compile exclude each other.
            lock.release()
            lock = None
        return Entry(claim, path, lock=lock, manifest=manifest, stored=self._prune)

    def _new_folder(self, key: CacheKey) -> Path:
        path = self._work / f"{next(self._numbers)}-{key.name[:8]}"
        path.mkdir(mode=files.PRIVATE_FOLDER)
        return path

    def _prune(self) -> None:
        try:
            for entry in prune(self._directory, max_bytes=self._max_bytes):
                log.info("compile cache: removed %s, unused for longest, to keep to --cache-max-bytes", entry.key)
        except OSError as exc:
            log.warning("compile cache: cannot be kept below its limit: %s", exc)


def _own(path: Path) -> HeldLock:
    # Another server's sweep may be looking at it. Then it is free, or gone, in a moment.
    while (lock := wait_for_lock(path, limit_s=None, announce=lambda: None)) is None:
        continue
    return lock


def _hold(claim: Claim, wait_s: float | None) -> HeldLock | None:
    def announce() -> None:
        log.info("compile cache: %s waits for another load of the same, which compiles", claim.subject)

    lock = hold(claim.slot, limit_s=wait_s, announce=announce)
    if lock is None:
        log.warning(
            "compile cache: %s waited for %s s, and is loaded without what it waited for", claim.subject, wait_s
        )
    return lock
