"""Whether what lies in a model's folder is still what it was: sizes and times of its files, without reading any."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from preheat.repository.configuration import CONFIG_FILE
from preheat.repository.names import is_ignored, is_version
from preheat.repository.scan import model_names


class FileStamp(NamedTuple):
    """One file as ``stat`` has it: a copy over it, or another put in its place, changes one of these."""

    path: str
    size: int
    modified_ns: int
    inode: int


Stamp: TypeAlias = tuple[FileStamp, ...]


@dataclass(frozen=True, slots=True)
class FolderStamp:
    """A model's folder at one moment. Equal stamps: nothing has changed that a load would see.

    ``config`` is its config.pbtxt, empty without one; ``shared`` what else lies beside the version folders, which every
    version may read; ``versions`` the files of each. ``renamed_in`` are versions that arrived whole, by a rename, and
    ``renamed`` says that the folder itself did. ``changed_s`` is when anything last changed, as ``time.time`` has it.
    """

    config: Stamp
    shared: Stamp
    versions: Mapping[int, Stamp]
    renamed_in: frozenset[int]
    renamed: bool
    changed_s: float

    def rests(self, settle_s: float) -> bool:
        """Whether nothing has changed for ``settle_s``, or all came by a rename. Times to come are not believed."""
        return self.renamed or not 0 <= time.time() - self.changed_s < settle_s

    def same_files(self, other: "FolderStamp | None") -> bool:
        """Whether ``other`` has the same files, as they are; when they came does not count."""
        return other is not None and (self.config, self.shared, self.versions) == (
            other.config,
            other.shared,
            other.versions,
        )


# Unlike that of any folder.
UNKNOWN = FolderStamp((FileStamp("", 0, 0, 0),), (), {}, frozenset(), renamed=False, changed_s=0.0)


def stamp_folder(folder: Path) -> FolderStamp | None:
    """The stamp of the model in ``folder``, None if there is no such folder. What vanishes meanwhile is not in it."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        status = folder.stat()
    except OSError:
        return None
    config: list[FileStamp] = []
    shared: list[FileStamp] = []
    versions: dict[int, Stamp] = {}
    renamed_in: set[int] = set()
    changed_ns: list[int] = []
    for entry in entries:
        if is_ignored(entry.name):
            continue
        found = list(_files(entry, entry.name))
        changed_ns += [each.changed_ns for each in found]
        stamps = [each.stamp for each in found if each.stamp is not None]
        if is_version(entry.name) and entry.is_dir():
            versions[int(entry.name)] = tuple(stamps)
            if _was_renamed(entry.path, found[:-1]):
                renamed_in.add(int(entry.name))
        elif entry.name == CONFIG_FILE:
            config += stamps
        else:
            shared += stamps
    renamed = status.st_ctime_ns > max([status.st_mtime_ns, *changed_ns])
    changed_s = max([status.st_mtime_ns, *changed_ns]) / 1e9
    return FolderStamp(tuple(config), tuple(shared), versions, frozenset(renamed_in), renamed, changed_s)


def stamp_model(repositories: Sequence[Path], name: str) -> FolderStamp | None:
    """The stamp of the model's folder in ``repositories``; None if there is none.

    That there is another of the same name, in a second one, is part of it.
    """
    if is_ignored(name):
        return None
    folders = [path for path in (repository / name for repository in repositories) if path.is_dir()]
    stamp = stamp_folder(folders[0]) if folders else None
    if stamp is None or len(folders) == 1:
        return stamp
    others = tuple(FileStamp(str(path), 0, 0, path.stat().st_ino) for path in folders[1:])
    return replace(stamp, shared=stamp.shared + others)


def stamp_models(repositories: Sequence[Path]) -> dict[str, FolderStamp]:
    """The stamps of all models, by name. Raises InvalidConfig if a repository is no readable folder."""
    stamps = {name: stamp_model(repositories, name) for name in model_names(repositories)}
    return {name: stamp for name, stamp in stamps.items() if stamp is not None}


class _Found(NamedTuple):
    """A file or folder; ``changed_ns`` is when its status last changed, as it does with its contents.

    Not when those were modified, which whoever copies may set to whatever it was elsewhere.
    """

    stamp: FileStamp | None
    changed_ns: int


def _files(entry: "os.DirEntry[str]", path: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[_Found]:
    """What is below ``entry``, and itself, last. Links are followed, but into no folder that ``entry`` is in."""
    try:
        status = entry.stat()
        if not entry.is_dir():
            yield _Found(FileStamp(path, status.st_size, status.st_mtime_ns, status.st_ino), status.st_ctime_ns)
            return
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        for below in sorted(os.scandir(entry.path), key=lambda each: each.name):
            if not is_ignored(below.name):
                yield from _files(below, f"{path}/{below.name}", above | {identity})
        yield _Found(None, status.st_ctime_ns)
    except OSError:
        return


def _was_renamed(folder: str, below: list[_Found]) -> bool:
    """Whether ``folder`` was put where it is after all ``below`` it was.

    A rename changes a folder's own status, and neither its contents nor its files. Whoever writes into it changes
    both, or the files later.
    """
    try:
        # Not as scandir has it: that may be from before.
        status = Path(folder).stat()
    except OSError:
        return False
    return bool(below) and status.st_ctime_ns > max(status.st_mtime_ns, *(each.changed_ns for each in below))
