"""Files and folders as the cache reads and writes them: no link followed, nothing loaded whole, everything hashed."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
PRIVATE_FOLDER = 0o700
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ReadFailed(Exception):
    """A file could not be read, as against written: ``cause`` says why."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(f"{path}: {cause.strerror}")
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Digest:
    """A file's content: its size and its SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Tree:
    """What is below a folder, by relative path: regular files with their state, and what is neither file nor folder."""

    files: dict[str, os.stat_result]
    others: frozenset[str]


def read_tree(root: Path) -> Tree:
    """List what is below ``root``, following no link. Raises OSError."""
    files: dict[str, os.stat_result] = {}
    others: set[str] = set()
    pending = [""]
    while pending:
        parent = pending.pop()
        with os.scandir(root / parent) as found:
            for each in found:
                path = f"{parent}/{each.name}" if parent else each.name
                if each.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif each.is_file(follow_symlinks=False):
                    files[path] = each.stat(follow_symlinks=False)
                else:
                    others.add(path)
    return Tree(files, frozenset(others))


def digest(path: Path) -> Digest:
    """Hash the file at ``path``; a link is followed. Raises OSError."""
    hashed, size = hashlib.sha256(), 0
    try:
        for chunk in _chunks(path, _READ):
            hashed.update(chunk)
            size += len(chunk)
    except ReadFailed as exc:
        raise exc.cause from exc
    return Digest(size, hashed.hexdigest())


def copy(source: Path, target: Path, *, executable: bool, sync: bool) -> Digest:
    """Copy a regular file to ``target``, which must not exist; what was copied.

    ``sync``: it is on the disk before this returns. Raises ReadFailed for ``source``, OSError for ``target``.
    """
    hashed, size = hashlib.sha256(), 0
    descriptor = os.open(target, _CREATE, 0o700 if executable else 0o600)
    try:
        for chunk in _chunks(source, _READ | os.O_NOFOLLOW):
            hashed.update(chunk)
            size += len(chunk)
            _write_all(descriptor, chunk)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Digest(size, hashed.hexdigest())


def check(source: Path) -> Digest:
    """Hash a regular file, following no link. Raises ReadFailed."""
    hashed, size = hashlib.sha256(), 0
    for chunk in _chunks(source, _READ | os.O_NOFOLLOW):
        hashed.update(chunk)
        size += len(chunk)
    return Digest(size, hashed.hexdigest())


def read_bounded(path: Path, limit: int) -> bytes:
    """A regular file's content, at most ``limit`` bytes and one. Raises ReadFailed."""
    content = bytearray()
    for chunk in _chunks(path, _READ | os.O_NOFOLLOW):
        content += chunk
        if len(content) > limit:
            break
    return bytes(content[: limit + 1])


def write(path: Path, content: bytes) -> None:
    """Write a new file and have it on the disk. Raises OSError."""
    descriptor = os.open(path, _CREATE, 0o600)
    try:
        _write_all(descriptor, memoryview(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove whatever is at ``path``, if anything is; links are removed, not followed. Raises OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _chunks(path: Path, flags: int) -> Iterator[memoryview]:
    """A regular file's content; each view is good until the next is asked for. Raises ReadFailed."""
    try:
        # O_NONBLOCK in the flags: a pipe that took a file's place must not hold the server up.
        descriptor = os.open(path, flags)
    except OSError as exc:
        raise ReadFailed(path, exc) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ReadFailed(path, OSError(errno.ENXIO, "is no regular file"))
        buffer = memoryview(bytearray(min(_CHUNK, status.st_size + 1)))
        while size := _read_into(descriptor, buffer, path):
            yield buffer[:size]
    finally:
        os.close(descriptor)


def _read_into(descriptor: int, buffer: memoryview, path: Path) -> int:
    try:
        return os.readv(descriptor, [buffer])
    except OSError as exc:
        raise ReadFailed(path, exc) from exc


def _write_all(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]
