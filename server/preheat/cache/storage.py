"""An entry on the disk: taken out, checked, put in, dropped. The caller holds its lock."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from preheat.cache import files
from preheat.cache.files import ReadFailed, Tree
from preheat.cache.keys import CacheKey
from preheat.cache.layout import Slot
from preheat.cache.manifest import LIMIT, Damaged, Manifest, StoredFile, parse, render

# Whether a file, by relative path, is worth storing.
Worth: TypeAlias = Callable[[str], bool]
# Reading failed because of what is there. Whatever else fails (no memory, no permission) says nothing of the entry.
_DAMAGE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO, errno.EBADMSG, errno.EUCLEAN}
)


class NotStorable(Exception):
    """What is in the folder cannot be an entry: the text says why."""


def restore(slot: Slot, target: Path) -> Manifest | None:
    """Copy the entry's files to the empty folder ``target``, each checked as it is copied; None if there is no entry.

    Copies, not links: what befalls the entry later must not reach a running model. Raises Damaged, leaving something
    in ``target``, or OSError.
    """
    if not slot.occupied:
        return None
    manifest = _matching_manifest(slot)
    for folder in sorted(_folders(each.path for each in manifest.files)):
        (target / folder).mkdir(mode=files.PRIVATE_FOLDER)
    for each in manifest.files:
        with _reading():
            found = files.copy(slot.files_path / each.path, target / each.path, executable=each.executable, sync=False)
        _compare(each, found)
    return manifest


def verify(slot: Slot) -> Manifest:
    """Check the entry to the byte. Raises Damaged or OSError."""
    manifest = _matching_manifest(slot)
    for each in manifest.files:
        with _reading():
            found = files.check(slot.files_path / each.path)
        _compare(each, found)
    return manifest


def read_manifest(slot: Slot) -> Manifest:
    """The manifest alone. Raises Damaged or OSError."""
    with _reading():
        content = files.read_bounded(slot.manifest_path, LIMIT)
    manifest = parse(content)
    if (manifest.environment, manifest.name) != (slot.environment_path.name, slot.name):
        raise Damaged(f"manifest.json is that of {manifest.environment}/{manifest.name}")
    return manifest


def save(
    slot: Slot, source: Path, *, key: CacheKey, record: Mapping[str, Any], worth: Worth, max_bytes: int
) -> Manifest:
    """Make an entry of what is in ``source``, in place of the one that there may be.

    Whenever the process dies, there is the old entry, the new one, or none. Raises NotStorable, OSError, and TypeError
    or ValueError for a record that is no JSON.
    """
    tree = _worthwhile(source, worth)
    size = sum(status.st_size for status in tree.files.values())
    if size > max_bytes:
        raise NotStorable(f"it has {size} bytes, and --cache-max-bytes allows {max_bytes}")
    incoming = slot.incoming
    files.remove(incoming.path)
    try:
        incoming.path.mkdir(mode=files.PRIVATE_FOLDER)
        incoming.files_path.mkdir(mode=files.PRIVATE_FOLDER)
        stored = _copy_in(tree, source, incoming.files_path)
        manifest = _describe(key, stored, record)
        files.write(incoming.manifest_path, render(manifest))
        files.sync_folder(incoming.path)
        _replace(slot)
    except BaseException:
        with suppress(OSError):
            files.remove(incoming.path)
        raise
    return manifest


def holds(manifest: Manifest, source: Path, *, worth: Worth) -> bool:
    """Whether what is in ``source`` is what ``manifest`` says, to the byte. Raises NotStorable or OSError."""
    tree = _worthwhile(source, worth)
    if {path: status.st_size for path, status in tree.files.items()} != {
        each.path: each.size for each in manifest.files
    }:
        return False
    return all(files.digest(source / each.path).sha256 == each.sha256 for each in manifest.files)


def adds(manifest: Manifest, source: Path, *, worth: Worth) -> bool:
    """Whether ``source`` has files that ``manifest`` does not name. Raises OSError."""
    known = {each.path for each in manifest.files}
    return any(path not in known for path in filter(worth, files.read_tree(source).files))


def touch(slot: Slot) -> None:
    """The entry was used now. Raises OSError."""
    os.utime(slot.manifest_path)


def drop(slot: Slot) -> None:
    """Remove the entry, if there is one, and what a killed process left of it. Raises OSError."""
    files.remove(slot.incoming.path)
    files.remove(slot.outgoing)
    if slot.occupied:
        # First of all it is no entry any more.
        slot.path.rename(slot.outgoing)
        files.remove(slot.outgoing)


def _describe(key: CacheKey, stored: tuple[StoredFile, ...], record: Mapping[str, Any]) -> Manifest:
    return Manifest(
        environment=key.environment,
        name=key.name,
        backend=key.backend,
        environment_text=key.environment_text,
        created_s=time.time(),
        files=stored,
        record=record,
    )


def _replace(slot: Slot) -> None:
    """A folder cannot be renamed onto a full one: the old entry goes aside first, and away last."""
    files.remove(slot.outgoing)
    if slot.occupied:
        slot.path.rename(slot.outgoing)
    slot.incoming.path.rename(slot.path)
    files.sync_folder(slot.environment_path)
    files.remove(slot.outgoing)


def _worthwhile(source: Path, worth: Worth) -> Tree:
    tree = files.read_tree(source)
    kept = {path: status for path, status in tree.files.items() if worth(path)}
    for path in sorted(filter(worth, tree.others)):
        raise NotStorable(f"{path} is no regular file, and an entry without it would not be whole")
    return Tree(kept, frozenset())


def _copy_in(tree: Tree, source: Path, target: Path) -> tuple[StoredFile, ...]:
    folders = sorted(_folders(tree.files))
    for folder in folders:
        (target / folder).mkdir(mode=files.PRIVATE_FOLDER)
    stored: list[StoredFile] = []
    for path, status in sorted(tree.files.items()):
        executable = bool(status.st_mode & 0o100)
        try:
            found = files.copy(source / path, target / path, executable=executable, sync=True)
        except ReadFailed as exc:
            if exc.cause.errno != errno.ENOENT:
                raise exc.cause from exc
            # Gone since it was listed: somebody's temporary file.
            files.remove(target / path)
        else:
            stored.append(StoredFile(path, found.size, found.sha256, executable))
    for folder in ("", *folders):
        files.sync_folder(target / folder)
    return tuple(stored)


def _matching_manifest(slot: Slot) -> Manifest:
    """The manifest, held against the names, kinds and sizes of what is there."""
    tree = _tree(slot)
    if tree.others:
        raise Damaged(f"{min(tree.others)} is no regular file")
    manifest = read_manifest(slot)
    sizes = {f"files/{each.path}": each.size for each in manifest.files}
    found = {path: status.st_size for path, status in tree.files.items() if path != "manifest.json"}
    for path in sorted(found.keys() | sizes.keys()):
        if path not in found:
            raise Damaged(f"{path} is missing")
        if path not in sizes:
            raise Damaged(f"{path} does not belong to it")
        if found[path] != sizes[path]:
            raise Damaged(f"{path} has {found[path]} bytes instead of {sizes[path]}")
    return manifest


def _tree(slot: Slot) -> Tree:
    if slot.path.is_symlink():
        raise Damaged("it is a link")
    try:
        return files.read_tree(slot.path)
    except OSError as exc:
        if exc.errno in _DAMAGE:
            raise Damaged(f"{exc.filename}: {exc.strerror}") from exc
        raise


def _compare(expected: StoredFile, found: files.Digest) -> None:
    if found.size != expected.size or found.sha256 != expected.sha256:
        raise Damaged(f"files/{expected.path} does not have its checksum")


def _folders(paths: Iterable[str]) -> set[str]:
    return {str(parent) for path in paths for parent in Path(path).parents if parent.name}


@contextmanager
def _reading() -> Iterator[None]:
    """Tell damage from whatever else can keep a file from being read."""
    try:
        yield
    except ReadFailed as exc:
        if exc.cause.errno in _DAMAGE:
            raise Damaged(f"{exc}") from exc
        raise exc.cause from exc
