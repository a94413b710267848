"""Writing files once: each appears whole, by rename, or not at all; a manifest of digests tells what is in place."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_MANIFEST = ".materialized.json"


class MaterializeError(Exception):
    """Something is missing or wrong, and the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file to write.

    `make(repository, target)` writes it at `target`, and returns what is worth telling about it. It may read the
    artifacts listed before this one. `needs` are the packages that it imports.
    """

    path: str
    needs: tuple[str, ...]
    make: Callable[[Path, Path], str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What belongs into a repository: the artifacts, the files that they are made from, and how to install packages."""

    artifacts: Sequence[Artifact]
    sources: Sequence[Path]
    installs: Mapping[str, str]


def materialize(repository: Path, recipe: Recipe, *, force: bool = False) -> None:
    """Write what is missing, damaged or outdated in `repository`; with `force`, everything."""
    started_s = time.monotonic()
    sources = _sources_digest(recipe.sources)
    digests = {} if force else _read_manifest(repository, sources)
    pending = [artifact for artifact in recipe.artifacts if not _is_intact(repository, artifact, digests)]
    _require_packages(pending, recipe.installs)
    for artifact in pending:
        digests[artifact.path] = _make(repository, artifact)
        _write_manifest(repository, sources, digests)
    print(f"{repository}: {len(recipe.artifacts)} files in place, {len(pending)} of them new, {_elapsed(started_s)}")


def sha256(path: Path) -> str:
    """Return the file's digest, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(repository: Path, artifact: Artifact) -> str:
    """Write one artifact and return its digest."""
    started_s = time.monotonic()
    print(f"  {artifact.path} ...", end=" ", flush=True)
    try:
        with _replacing(repository, artifact.path) as target:
            note = artifact.make(repository, target)
            digest = sha256(target)
    except BaseException:
        print("failed")
        raise
    print(f"{_elapsed(started_s)} ({note})")
    return digest


@contextlib.contextmanager
def _replacing(repository: Path, path: str) -> Iterator[Path]:
    """Give a temporary file that takes its place at `path` if the block succeeds, and goes if it does not."""
    final = repository / path
    final.parent.mkdir(parents=True, exist_ok=True)
    # Beside the models rather than in one: a server that watches the repository must not see a version change twice.
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".partial", dir=repository)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's own 0600 would hide it from a server that runs as another user
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


# The manifest: which content each file should have, and what it was made from.


def _sources_digest(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(bytes.fromhex(sha256(source)))
    return digest.hexdigest()


def _read_manifest(repository: Path, sources: str) -> dict[str, str]:
    """Return the digest by path, or nothing where the manifest is absent, unreadable or of other sources."""
    try:
        manifest = json.loads((repository / _MANIFEST).read_text())
        return dict(manifest["files"]) if manifest["sources"] == sources else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _write_manifest(repository: Path, sources: str, digests: Mapping[str, str]) -> None:
    with _replacing(repository, _MANIFEST) as target:
        target.write_text(json.dumps({"sources": sources, "files": digests}, indent=2) + "\n")


def _is_intact(repository: Path, artifact: Artifact, digests: Mapping[str, str]) -> bool:
    path = repository / artifact.path
    return artifact.path in digests and path.is_file() and sha256(path) == digests[artifact.path]


def _require_packages(artifacts: Sequence[Artifact], installs: Mapping[str, str]) -> None:
    """Raise one error that names every missing package, before any work is done."""
    needed = sorted({package for artifact in artifacts for package in artifact.needs})
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        commands = "".join(f"\n  {installs[package]}" for package in missing)
        raise MaterializeError(f"not installed: {', '.join(missing)}; install with:{commands}")


def _elapsed(started_s: float) -> str:
    return f"{time.monotonic() - started_s:.1f} s"
