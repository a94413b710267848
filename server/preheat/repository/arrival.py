"""A version on its way into a repository: received beside the models, checked, and renamed in.

Whoever looks at the repository sees the model as it was, or the whole version: nothing in between, however the process
that receives it ends.
"""

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from preheat.errors import AlreadyExists, InvalidConfig, InvalidRequest
from preheat.repository.configuration import BACKEND_OF_ARTIFACT, CONFIG_FILE, parse_configuration
from preheat.repository.integrity import check_version
from preheat.repository.names import is_model_name, is_plain, is_version, version_aside
from preheat.repository.warmup_samples import WARMUP_FOLDER

log = logging.getLogger(__name__)

# Hidden, so that it is no model.
_PREFIX = ".arriving-"
_LOCK = "lock"
_MOST_FILES = 10_000
_MOST_PATH_BYTES = 1024
_MOST_DEPTH = 32
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file that is to come: its ``path`` below the version's folder, its ``size`` in bytes, and its hash in hex."""

    path: str
    size: int
    sha256: str


class Arrival:
    """One version being received, ended by :meth:`place` or :meth:`abandon`. Any thread; ``_turn`` has one at a time.

    Its folder is on the repository's file system, so that it can be renamed in; it is locked, so that whoever finds one
    can tell whether it is still being filled.
    """

    def __init__(
        self, repositories: Sequence[Path], model: str, version: int, files: Sequence[PushedFile], config: str | None
    ) -> None:
        """``version`` 0: the one after the highest there is. ``config`` takes the place of the model's config.pbtxt.

        Raises InvalidRequest for what cannot be, AlreadyExists, and OSError.
        """
        if not is_model_name(model):
            raise InvalidRequest(f"model name '{model}': only letters, digits, '_', '-' and '.' can be in one")
        if version and not is_version(str(version)):
            raise InvalidRequest(f"version {version}: must be from 1 to {10**18 - 1}, or 0 for the next")
        _check_files(files)
        self.model = model
        self._version = version
        self._files = files
        self._target = _model_folder(repositories, model)
        if version and (self._target / str(version)).exists():
            raise AlreadyExists(f"{model}/{version} is there already; push another version, or none to take the next")
        self._config = config
        self._turn = threading.RLock()
        self._ended = False
        _check_room(self._target.parent, sum(file.size for file in files))
        self._place = self._target.parent / f"{_PREFIX}{secrets.token_hex(8)}"
        self._version_folder = self._place / model / str(version or 1)
        self._lock = -1
        self._done = 0
        self._open: BinaryIO | None = None
        self._written = 0
        self._hash = hashlib.sha256()
        try:
            self._place.mkdir()
            self._lock = _lock(self._place)
            # Each by itself: if the folder was taken for a leftover before it was locked, it is not made anew.
            self._version_folder.parent.mkdir()
            self._version_folder.mkdir()
            self._finish_files()
        except BaseException:
            self.abandon()
            raise

    def write(self, piece: bytes) -> None:
        """Take the next bytes, of one file or several. Raises InvalidRequest for others than announced, and OSError."""
        rest = memoryview(piece)
        with self._turn:
            self._write(rest)

    def _write(self, rest: memoryview) -> None:
        while rest:
            if self._ended:
                raise InvalidRequest(f"{self.model}: was given up")
            if self._done == len(self._files):
                raise InvalidRequest(f"{self.model}: {len(rest)} more bytes than the files have that were announced")
            file = self._files[self._done]
            if self._open is None:
                path = self._version_folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                self._open = path.open("xb")
            now = rest[: file.size - self._written]
            self._open.write(now)
            self._hash.update(now)
            self._written += len(now)
            rest = rest[len(now) :]
            self._finish_files()

    def check(self) -> None:
        """See that all of it is there and whole, and, if the model is new, that its backend can be told.

        Raises InvalidRequest, InvalidArtifact.
        """
        if self._done < len(self._files):
            raise InvalidRequest(
                f"{self.model}: {self._files[self._done].path}: {self._written} bytes of "
                f"{self._files[self._done].size} came, and no more"
            )
        check_version(self._version_folder)
        if self._config is not None:
            _check_config(self._config, self._place / self.model, self._target)
        elif not self._target.exists():
            _check_backend(self._place / self.model)

    def place(self) -> int:
        """Rename it in; the version it became. Raises AlreadyExists, and OSError.

        A configuration takes its place just before, so that a server, which waits for it to rest, sees both together.
        """
        with self._turn:
            return self._place_all()

    def _place_all(self) -> int:
        if self._ended:
            raise InvalidRequest(f"{self.model}: was given up")
        version = self._version or _next_version(self._target)
        if version != int(self._version_folder.name):
            renamed = self._version_folder.with_name(str(version))
            self._version_folder.rename(renamed)
            self._version_folder = renamed
        _sync(self._place / self.model)
        if self._config is not None:
            _write(self._place / self.model / CONFIG_FILE, self._config)
        if self._target.exists():
            if (self._target / str(version)).exists():
                raise AlreadyExists(f"{self.model}/{version} has come to be there meanwhile")
            if self._config is not None:
                (self._place / self.model / CONFIG_FILE).rename(self._target / CONFIG_FILE)
            self._version_folder.rename(self._target / str(version))
        else:
            (self._place / self.model).rename(self._target)
        _sync_folder(self._target)
        _sync_folder(self._target.parent)
        self.abandon()
        return version

    def abandon(self) -> None:
        """Remove what is left. Never raises."""
        with self._turn:
            if self._ended:
                return
            self._ended = True
            if self._open is not None:
                self._open.close()
                self._open = None
            shutil.rmtree(self._place, ignore_errors=True)
            if self._lock >= 0:
                os.close(self._lock)

    def _finish_files(self) -> None:
        """Close the file that has all its bytes, and make those that have none."""
        while self._done < len(self._files) and self._written == self._files[self._done].size:
            file = self._files[self._done]
            if self._hash.hexdigest() != file.sha256:
                raise InvalidRequest(f"{self.model}: {file.path}: its content is another than the hash announced")
            if self._open is None:
                path = self._version_folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            else:
                self._open.close()
            self._open, self._written, self._hash = None, 0, hashlib.sha256()
            self._done += 1


def remove_leftovers(repositories: Sequence[Path]) -> int:
    """Remove what processes left that were killed while they received; how many. What is being received stays."""
    removed = 0
    for place in (path for repository in repositories for path in repository.glob(f"{_PREFIX}*")):
        with suppress(OSError):
            descriptor = os.open(place / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place)
                removed += 1
            finally:
                os.close(descriptor)
    return removed


def _check_files(files: Sequence[PushedFile]) -> None:
    """Raise InvalidRequest for names that lead elsewhere, or cannot be together, and for hashes that are none."""
    if not 1 <= len(files) <= _MOST_FILES:
        raise InvalidRequest(f"a version has 1 to {_MOST_FILES} files; {len(files)} were announced")
    for file in files:
        parts = file.path.split("/")
        too_long = len(os.fsencode(file.path)) > _MOST_PATH_BYTES or len(parts) > _MOST_DEPTH
        if too_long or not all(map(is_plain, parts)):
            raise InvalidRequest(
                f"file '{file.path}': must be a path below the version's folder, of at most {_MOST_DEPTH} plain names"
            )
        if not _HASH.fullmatch(file.sha256):
            raise InvalidRequest(f"file '{file.path}': sha256: must be 64 hexadecimal digits, in small letters")
    times = Counter(file.path for file in files)
    folders = {path[: index.start()] for path in times for index in re.finditer("/", path)}
    for path, count in times.items():
        if path in folders or count > 1:
            raise InvalidRequest(f"file '{path}': is announced twice, or as a folder too")


def _model_folder(repositories: Sequence[Path], model: str) -> Path:
    """Where the model is, or will be: in the first repository. Raises InvalidRequest if that is out of it."""
    for repository in repositories:
        folder = repository.resolve() / model
        if folder.is_symlink():
            raise InvalidRequest(f"{folder} is a link out of the repository; put the version where that leads")
        if folder.is_dir():
            return folder
    return repositories[0].resolve() / model


def _check_config(config: str, arriving: Path, target: Path) -> None:
    """Raise InvalidRequest for what is no configuration of the model whose version is in ``arriving``."""
    # Its samples are files of the model, which is where they stay.
    folder = target if (target / WARMUP_FOLDER).is_dir() else arriving
    try:
        parse_configuration(config, folder)
    except InvalidConfig as exc:
        raise InvalidRequest(str(exc).replace(str(folder / CONFIG_FILE), "the pushed config.pbtxt")) from exc


def _check_backend(arriving: Path) -> None:
    """Raise InvalidRequest if the backend of a new model cannot be told from its artifact."""
    try:
        parse_configuration("", arriving)
    except InvalidConfig as exc:
        known = ", ".join(BACKEND_OF_ARTIFACT)
        raise InvalidRequest(
            f"model '{arriving.name}' is new, and has none of {known} to tell its backend by: push its config.pbtxt too"
        ) from exc


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InvalidRequest(f"{size} bytes were announced, and {folder} has room for {free}")


def _lock(place: Path) -> int:
    descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _next_version(target: Path) -> int:
    """One more than there is, or was until it was rolled back."""
    names = [path.name for path in target.iterdir()] if target.is_dir() else []
    taken = [int(name) for name in names if is_version(name)]
    taken += [version for name in names if (version := version_aside(name)) is not None]
    return max(taken, default=0) + 1


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Have all below ``folder`` on the disk before it is renamed: a crash must not leave names without bytes."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync_folder(Path(place) / name)
        _sync_folder(Path(place))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
