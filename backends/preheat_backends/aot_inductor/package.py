"""A package's archive, read without running anything in it.

torch unpacks a package and opens its library before it looks at what it was built for, and code for another CPU ends
the process. So all that can be told is read here first, straight from the zip.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from preheat.backend import ModelSource
from preheat.errors import InvalidArtifact

_FOLDER = "data/aotinductor/"
_BUILD = "build the package again"


@dataclass(frozen=True, slots=True)
class Package:
    """One network of a package, as text.

    ``metadata`` is what torch wrote of the machine that it was compiled on, and what others added. ``wrapper`` and
    ``kernels`` are the C++ that was compiled; empty where the package was made without. ``libraries`` are the names of
    its compiled members, ``others`` those of members that are neither source nor metadata.
    """

    path: Path
    metadata: Mapping[str, str]
    wrapper: str
    kernels: str
    libraries: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_package(source: ModelSource, path: Path, model_name: str) -> Package:
    """The network ``model_name`` of the package at ``path``.

    Raises InvalidConfig if there is none of that name, InvalidArtifact if the package is damaged or has something in it
    that is not served.
    """
    with _opened(path) as archive:
        networks = _by_network(archive)
        if model_name not in networks:
            allowed = f"the package has {', '.join(map(repr, sorted(networks)))}"
            raise source.refuse("model_name", model_name, allowed)
        members = networks[model_name]
        _refuse_unservable(path, members)
        wrapper = [name for name in members if name.endswith("wrapper.cpp")]
        kernels = [name for name in members if name.endswith(".cpp") and name not in wrapper]
        libraries = tuple(name for name in members if name.endswith(".so"))
        others = tuple(name for name in members if not name.endswith((".so", ".cpp", "_metadata.json")))
        metadata = _metadata(archive, members, path)
        return Package(path, metadata, _text(archive, wrapper), _text(archive, kernels), libraries, others)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        zlib.error,
    ) as exc:
        raise InvalidArtifact(f"{path} is damaged: {exc}; copy it again") from exc
    except OSError as exc:
        raise InvalidArtifact(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _by_network(archive: zipfile.ZipFile) -> Mapping[str, list[str]]:
    """The members of each network, by its name: they lie in folders, below one that has any name."""
    networks: dict[str, list[str]] = {}
    for member in archive.namelist():
        inside = member.partition("/")[2]
        if inside.startswith(_FOLDER):
            networks.setdefault(inside.removeprefix(_FOLDER).partition("/")[0], []).append(member)
    return networks


def _refuse_unservable(path: Path, members: list[str]) -> None:
    if not any(name.endswith(".so") for name in members):
        raise InvalidArtifact(
            f"{path} has no compiled library in it, only sources; {_BUILD} without aot_inductor.package_cpp_only"
        )
    if any(name.endswith("weights_config.json") for name in members):
        raise InvalidArtifact(
            f"{path} keeps its weights outside its library, from where they are not loaded; {_BUILD} without "
            "aot_inductor.package_constants_on_disk_format: 'pickle_weights'"
        )


def _metadata(archive: zipfile.ZipFile, members: list[str], path: Path) -> Mapping[str, str]:
    """What the wrapper was built with; the kernels' own file says the same."""
    files = sorted((name for name in members if name.endswith("_metadata.json")), key=lambda name: "kernel" in name)
    if not files:
        raise InvalidArtifact(
            f"{path} does not say what it was compiled for: it has no metadata in it; {_BUILD} with torch 2.7 or later"
        )
    try:
        read = json.loads(archive.read(files[0]))
    except (UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise InvalidArtifact(f"{path} is damaged: {files[0]!r} in it is no JSON: {exc}") from exc
    if not isinstance(read, dict) or not all(isinstance(value, str) for value in read.values()):
        raise InvalidArtifact(f"{path} is damaged: {files[0]!r} in it does not map names to texts")
    return read


def _text(archive: zipfile.ZipFile, members: list[str]) -> str:
    return "\n".join(archive.read(name).decode("utf-8", "replace") for name in members)
