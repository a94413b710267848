"""Whether what lies in a version's folder is whole: by checksums where there are some, else by what headers promise.

Nothing heavy is imported, and little is read of what has no checksums. A thread beside live traffic may call it: it
works in pieces, and the libraries let go of the interpreter's lock for each.
"""

import hashlib
import json
import os
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from preheat.errors import InvalidArtifact

MANIFEST = "SHA256SUMS"
_PIECE = 2**20
_ZIP_MAGIC = b"PK\x03\x04"
# As coreutils write it: the hash, a space, another one or the mark of a binary file, and the name.
_LISTED = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
# Larger than any there is; what a damaged file claims is not to be read.
_MOST_HEADER_BYTES = 100 * 2**20
# Fields that every ModelProto has (onnx.proto): graph, and opset_import, which exporters write after it.
_ONNX_FIELDS = frozenset({7, 8})


def check_version(folder: Path) -> None:
    """Raise InvalidArtifact, naming a file and what is wrong with it, unless all that is in ``folder`` is whole."""
    for path in _files(folder):
        try:
            _check(path)
        except _Damaged as exc:
            raise InvalidArtifact(f"{path} is damaged, or not all of it is there yet: {exc}") from exc
        except (OSError, RecursionError, MemoryError) as exc:
            raise InvalidArtifact(f"{path} cannot be read: {type(exc).__name__}: {exc}") from exc


class _Damaged(Exception):
    """What is wrong."""


def _files(folder: Path) -> Iterator[Path]:
    """The files at any depth, but hidden ones and Python's caches. Links are followed, but never round."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _check(path: Path) -> None:
    check = _check_manifest if path.name == MANIFEST else _CHECKS.get(path.suffix.lower())
    if check is None:
        return
    if not path.stat().st_size:
        raise _Damaged("it is empty")
    check(path)


def _check_zip(path: Path) -> None:
    """Every member's checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    while file.read(_PIECE):
                        continue
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as exc:
        raise _Damaged(f"as an archive: {exc}") from exc


def _check_pickle_or_zip(path: Path) -> None:
    """What torch.save wrote: an archive, or long ago a pickle, of which nothing is known."""
    with path.open("rb") as file:
        begins = file.read(len(_ZIP_MAGIC))
    # Or the beginning of one.
    if _ZIP_MAGIC.startswith(begins):
        _check_zip(path)


def _check_safetensors(path: Path) -> None:
    """The file is as long as its header says (https://github.com/huggingface/safetensors#format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise _Damaged(f"it has {size} bytes, and its header alone should have {length}")
        try:
            header = json.loads(file.read(length))
            ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
            raise _Damaged("its header does not say where its tensors are") from exc
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise _Damaged(f"it has {size} bytes, and its header describes {expected}")


def _check_onnx(path: Path) -> None:
    """The fields of the message end where the file does, and none that each model has is missing.

    Weights in files of their own are for the backend to miss.
    """
    size = path.stat().st_size
    found: set[int] = set()
    with path.open("rb") as file:
        while file.tell() < size:
            number, kind = divmod(_read_varint(file), 8)
            found.add(number)
            if kind == 0:
                _read_varint(file)
            elif kind in (1, 2, 5):
                length = {1: 8, 5: 4}.get(kind)
                file.seek(_read_varint(file) if length is None else length, os.SEEK_CUR)
            else:
                raise _Damaged("it is no ONNX model")
        if file.tell() != size:
            raise _Damaged(f"it has {size} bytes, and describes at least {file.tell()}")
    if not found >= _ONNX_FIELDS:
        raise _Damaged("it has no graph, or not which operators that is of")


def _read_varint(file: BinaryIO) -> int:
    """A whole number as protobuf writes it (https://protobuf.dev/programming-guides/encoding/#varints)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise _Damaged("it ends in the middle of a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _Damaged("it is no ONNX model")


def _check_ir(path: Path) -> None:
    """The description is whole XML, and its weights are there, of which ``Const`` layers say offset and size."""
    end = 0
    try:
        for _, element in ET.iterparse(path):  # noqa: S314 - expat itself bounds what entities grow to
            if element.tag == "data" and "offset" in element.attrib and "size" in element.attrib:
                end = max(end, int(element.attrib["offset"]) + int(element.attrib["size"]))
            element.clear()
    except (ET.ParseError, ValueError) as exc:
        raise _Damaged(f"as XML: {exc}") from exc
    weights = path.with_suffix(".bin")
    if end and (not weights.is_file() or weights.stat().st_size < end):
        there = weights.stat().st_size if weights.is_file() else 0
        raise _Damaged(f"its weights, {weights.name}, should have {end} bytes, and have {there}")


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as exc:
        raise _Damaged(f"as JSON: {exc}") from exc


def _check_nothing(path: Path) -> None:
    """That it is not empty is all that is known of it."""


def _check_manifest(path: Path) -> None:
    """Every file that is listed is there, with that hash."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as exc:
        raise _Damaged(f"as text: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        match = _LISTED.fullmatch(line)
        name = PurePosixPath(match[2]) if match else PurePosixPath("/")
        if match is None or name.is_absolute() or ".." in name.parts:
            raise _Damaged(f"line {number} is not as sha256sum writes it, of a file below: {line[:80]!r}")
        listed = path.parent / name
        if not listed.is_file():
            raise _Damaged(f"line {number}: {name} is not there")
        if _hash(listed) != match[1].lower():
            raise _Damaged(f"line {number}: {name} is another than was listed")


def _hash(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


_CHECKS: Mapping[str, Callable[[Path], None]] = {
    ".pt2": _check_zip,
    ".npz": _check_zip,
    ".zip": _check_zip,
    ".pt": _check_pickle_or_zip,
    ".pth": _check_pickle_or_zip,
    ".ts": _check_pickle_or_zip,
    ".safetensors": _check_safetensors,
    ".onnx": _check_onnx,
    ".xml": _check_ir,
    ".json": _check_json,
    ".plan": _check_nothing,
    ".engine": _check_nothing,
    ".bin": _check_nothing,
    ".npy": _check_nothing,
}
