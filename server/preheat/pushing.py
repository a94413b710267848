"""What ``preheat repo push`` does of itself: which files a version has, and placing them where no server is asked."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from preheat.errors import InvalidRequest
from preheat.repository.arrival import Arrival, PushedFile
from preheat.repository.configuration import BACKEND_OF_ARTIFACT
from preheat.repository.integrity import hash_file
from preheat.repository.names import is_ignored

_PIECE = 2**20


def version_files(artifact: Path) -> dict[str, Path]:
    """The files of a version, by their paths in it. Raises FileNotFoundError, InvalidRequest."""
    if artifact.is_dir():
        found = {str(path.relative_to(artifact)): path for path in _below(artifact)}
        if not found:
            raise InvalidRequest(f"{artifact}: has no files")
        return found
    if not artifact.is_file():
        raise FileNotFoundError(f"{artifact}: no such file or folder")
    files = {_name_of(artifact): artifact}
    weights = artifact.with_suffix(".bin")
    if artifact.suffix == ".xml" and weights.is_file():
        files["model.bin"] = weights
    return files


def _below(folder: Path) -> Iterator[Path]:
    """The files at any depth, but hidden ones and Python's caches. Raises InvalidRequest for a link to a folder."""
    for path in sorted(folder.iterdir()):
        if is_ignored(path.name):
            continue
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise InvalidRequest(f"{path}: is a link to a folder; put a copy of that in its place")
        else:
            yield from _below(path)


def _name_of(artifact: Path) -> str:
    """What a version's only file is to be called: as backends look for it, if its kind says so."""
    known = {Path(name).suffix for name in (*BACKEND_OF_ARTIFACT, "model.py", "model.safetensors")}
    return f"model{artifact.suffix}" if artifact.suffix in known else artifact.name


def push_into(
    repository: Path, model: str, files: Mapping[str, Path], *, version: int, config: str | None, progress: "Progress"
) -> int:
    """Put ``files``, by their paths in the version, into a repository on this machine; the version they became.

    ``version`` 0: the next. Raises InvalidRequest, InvalidArtifact, AlreadyExists, and OSError.
    """
    announced = [PushedFile(path, source.stat().st_size, hash_file(source)) for path, source in files.items()]
    arrival = Arrival([repository], model, version, announced, config)
    try:
        sent = 0
        for source in files.values():
            with source.open("rb") as file:
                while piece := file.read(_PIECE):
                    arrival.write(piece)
                    sent += len(piece)
                    progress.show(sent)
        progress.end()
        arrival.check()
        return arrival.place()
    finally:
        arrival.abandon()


class Progress:
    """A line on a terminal that says how far it is; nothing elsewhere. Any thread."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = sys.stderr.isatty() and bool(total)

    def show(self, done: int) -> None:
        """So many bytes are done."""
        if self._shown:
            sys.stderr.write(f"\r{done / self._total:4.0%} of {self._total / 2**20:.1f} MiB")
            sys.stderr.flush()

    def end(self) -> None:
        """All of it is."""
        if self._shown:
            sys.stderr.write(os.linesep)
