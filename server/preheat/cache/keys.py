"""What an entry is found by: everything that compiled code depends on, and nothing else."""

import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from preheat.cache.files import Digest, digest

# Part of every key: servers whose formats differ share a directory without seeing each other's entries.
FORMAT = 1
_NAME_DIGITS = 32
_SLUG_LENGTH = 48
# Derived from what is beside it, written by the first load: it would change the key of the second.
_DERIVED = frozenset({"__pycache__"})
# A file changed twice within one tick of the file system's clock looks the same, so young files are not remembered.
_SETTLED_NS = 2_000_000_000
_REMEMBERED = 10_000

# Relative path -> SHA-256 of the content.
Artifacts: TypeAlias = Mapping[str, str]
_Identity: TypeAlias = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Where an entry stands, ``environment``/``name``, and what for, in words: ``backend`` and ``environment_text``."""

    environment: str
    name: str
    backend: str
    environment_text: str

    def __str__(self) -> str:
        return f"{self.environment}/{self.name}"


def make_key(*, backend: str, environment: str, artifacts: Artifacts, configuration: Mapping[str, Any]) -> CacheKey:
    """The key of what ``backend`` compiles in ``environment`` from ``artifacts`` under ``configuration``.

    Raises TypeError or ValueError for a configuration that is no JSON.
    """
    parts = [FORMAT, backend, environment, sorted(artifacts.items()), configuration]
    # ASCII, sorted and without NaN: one text for equal values, different texts for different ones.
    text = json.dumps(parts, sort_keys=True, allow_nan=False, separators=(",", ":"))
    name = hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]
    return CacheKey(environment_folder(environment), name, backend, environment)


def environment_folder(text: str) -> str:
    """A folder's name that a person can read, and that differs for texts that differ."""
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower())[:_SLUG_LENGTH].strip("-.")
    short = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{slug or 'environment'}-{short}"


class ArtifactDigests:
    """Digests the files of a version folder, each once for as long as it does not change. Any thread may call it."""

    def __init__(self, *, read: Callable[[Path], Digest] = digest, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._read = read
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._known: dict[_Identity, str] = {}

    def of(self, folder: Path) -> dict[str, str]:
        """Every file below ``folder`` and its SHA-256; links are followed. Slow: reads the files. Raises OSError."""
        return {path: self._digest(folder / path) for path in sorted(_files(folder))}

    def _digest(self, path: Path) -> str:
        before = _identity(path)
        with self._lock:
            known = self._known.get(before)
        if known is not None:
            return known
        now_ns = self._clock_ns()
        found = self._read(path).sha256
        settled = max(before[3], before[4]) < now_ns - _SETTLED_NS
        if settled and _identity(path) == before:
            with self._lock:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[before] = found
        return found


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _files(folder: Path) -> Iterator[str]:
    """Paths below ``folder``. A link to a folder that holds it would go round for ever: OSError says so (ELOOP)."""
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if name not in _DERIVED]
        relative = Path(parent).relative_to(folder)
        for name in names:
            # A socket or a pipe is no artifact, and reading it would wait for ever. Nor is a link to nowhere.
            with suppress(FileNotFoundError):
                if stat.S_ISREG(Path(parent, name).stat().st_mode):
                    yield (relative / name).as_posix()


def _raise(error: OSError) -> None:
    raise error
