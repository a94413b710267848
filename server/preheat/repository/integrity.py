"""Whether what lies in a version's folder is whole: by checksums where there are some, else by what headers promise.

Nothing heavy is imported, and little is read of what has no checksums. A thread beside live traffic may call it: it
works in pieces, and the libraries let go of the interpreter's lock for each.
"""

import hashlib
import json
import os
import re
import stat
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from preheat.errors import InvalidArtifact
from preheat.repository.names import is_ignored
from preheat.repository.onnx_file import weights_beside

MANIFEST = "SHA256SUMS"
_PIECE = 2**20
_EMPTY = "it is empty"
_MOST_WORDS = 200
_ZIP_MAGIC = b"PK\x03\x04"
_EMPTY_ZIP_MAGIC = b"PK\x05\x06"
# As coreutils write it: the hash, a space, another one or the mark of a binary file, and the name.
_LISTED = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
# Larger than any there is; what a damaged file claims is not to be read.
_MOST_HEADER_BYTES = 100 * 2**20


def check_version(folder: Path) -> None:
    """Raise InvalidArtifact, naming a file and what is wrong with it, unless all that is in ``folder`` is whole.

    A folder without files is whole: some backends need none, and the others miss theirs.
    """
    with _in_words(folder):
        paths = list(_files(folder))
    for path in paths:
        with _in_words(path):
            _check(path)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except _Damaged as exc:
        raise InvalidArtifact(f"{path} is damaged, or not all of it is there yet: {exc}") from exc
    # Whoever reads what anyone may have written raises what nobody thought of; and it may vanish while it is read.
    except Exception as exc:
        raise InvalidArtifact(f"{path} cannot be read: {type(exc).__name__}: {exc}") from exc


def hash_file(path: Path) -> str:
    """SHA-256 of what is in the file, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Damaged(Exception):
    """What is wrong."""


def _files(folder: Path) -> Iterator[Path]:
    """The files at any depth, but hidden ones and Python's caches. Links are followed, but never round."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        yield from (Path(place) / name for name in sorted(names) if not is_ignored(name))


def _raise(exc: OSError) -> None:
    raise exc


def _check(path: Path) -> None:
    check = _check_manifest if path.name == MANIFEST else _CHECKS.get(path.suffix.lower())
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # To open a pipe is to wait for whoever writes to it.
        if check is not None:
            raise _Damaged("it is no regular file")
    elif check is None:
        _check_other(path)
    elif not status.st_size and check is not _check_weights:
        raise _Damaged(_EMPTY)
    else:
        check(path)


def _check_zip(path: Path) -> None:
    """Every member's checksum, and that the directory is the archive's own."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for member in _own_members(file, archive):
                with archive.open(member) as content:
                    while content.read(_PIECE):
                        continue
    # Of what is in an archive that anyone may have written, zipfile lets through what struct, zlib and codecs raise.
    except Exception as exc:
        # Which may have half of the file in it.
        raise _Damaged(f"as an archive: {str(exc)[:_MOST_WORDS] or type(exc).__name__}") from exc


def _own_members(file: BinaryIO, archive: zipfile.ZipFile) -> Sequence[zipfile.ZipInfo]:
    """What is cut off behind an archive within it ends with the directory of that one, whose members begin later."""
    members = archive.infolist()
    file.seek(0)
    begins = file.read(len(_ZIP_MAGIC))
    first = min((member.header_offset for member in members), default=0)
    if first or begins != (_ZIP_MAGIC if members else _EMPTY_ZIP_MAGIC):
        raise zipfile.BadZipFile("its own directory is missing, or its beginning")
    return members


def _check_pickle_or_zip(path: Path) -> None:
    """What torch.save wrote: an archive, or long ago a pickle, of which nothing is known."""
    # Or the beginning of one.
    if _ZIP_MAGIC.startswith(_beginning(path)):
        _check_zip(path)


def _check_other(path: Path) -> None:
    """Many kinds of files are archives; of the others nothing is known."""
    if _beginning(path) == _ZIP_MAGIC:
        _check_zip(path)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_ZIP_MAGIC))


def _check_safetensors(path: Path) -> None:
    """The file is as long as its header says (https://github.com/huggingface/safetensors#format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise _Damaged(f"it has {size} bytes, and its header alone should have {length}")
        header = file.read(length)
    expected = 8 + length + _end_of_tensors(header)
    if size != expected:
        raise _Damaged(f"it has {size} bytes, and its header describes {expected}")


def _end_of_tensors(header: bytes) -> int:
    """Up to where they reach, which begin where others end."""
    try:
        spans = [(*tensor["data_offsets"],) for name, tensor in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise _Damaged("its header does not say where its tensors are") from exc
    if not all(len(span) == 2 and type(span[0]) is type(span[1]) is int for span in spans):
        raise _Damaged("its header does not say in whole numbers where its tensors are")
    end = 0
    for begin, after in sorted(spans):
        if begin != end or after < begin:
            raise _Damaged(f"its header has a tensor from {begin} to {after}, where the one before ends at {end}")
        end = after
    return end


def _check_onnx(path: Path) -> None:
    """The fields of the message end where the file does, and files that its graph's weights lie in are long enough.

    What is cut off between two fields behind the graph is not seen.
    """
    try:
        weights = weights_beside(path)
    except ValueError as exc:
        raise _Damaged(f"as ONNX: {exc}") from exc
    for name, length in weights.items():
        # Where that leads elsewhere, it is for the backend to refuse.
        if not _leads_out(PurePosixPath(name)):
            _check_length(path.parent / name, length)


def _check_length(weights: Path, expected: int) -> None:
    there = weights.stat().st_size if weights.is_file() else None
    if there is None or there < expected:
        has = "is not there" if there is None else f"has {there}"
        raise _Damaged(f"its weights, {weights.name}, should have {expected} bytes, and that file {has}")


def _leads_out(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts


def _check_ir(path: Path) -> None:
    """The description is whole XML, and its weights are there, of which ``Const`` layers say offset and size."""
    end, kind = 0, None
    try:
        with path.open("rb") as file:
            for event, element in ET.iterparse(file, ("start", "end")):  # noqa: S314 - expat bounds what entities grow to
                if event == "end":
                    element.clear()
                elif element.tag == "layer":
                    kind = element.get("type")
                elif element.tag == "data" and kind == "Const":
                    end = max(end, int(element.get("offset", "0")) + int(element.get("size", "0")))
    except (ET.ParseError, ValueError) as exc:
        raise _Damaged(f"as XML: {exc}") from exc
    if end:
        _check_length(path.with_suffix(".bin"), end)


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as exc:
        raise _Damaged(f"as JSON: {exc}") from exc


def _check_weights(path: Path) -> None:
    """Those of an IR, whose description says how many there are, which may be none; or what torch.save wrote."""
    if path.with_suffix(".xml").is_file():
        return
    if not path.stat().st_size:
        raise _Damaged(_EMPTY)
    _check_pickle_or_zip(path)


def _check_nothing(path: Path) -> None:
    """That it is not empty is all that is known of it."""


def _check_manifest(path: Path) -> None:
    """Every file that is listed is there, with that hash."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as exc:
        raise _Damaged(f"as text: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        match = _LISTED.fullmatch(line)
        name = PurePosixPath(match[2]) if match else PurePosixPath("/")
        if match is None or _leads_out(name):
            raise _Damaged(f"line {number} is not as sha256sum writes it, of a file below: {line[:80]!r}")
        # A list that is made anew in its place has itself in it, as it was before it was written.
        if str(name) == MANIFEST:
            continue
        listed = path.parent / name
        if not listed.is_file():
            raise _Damaged(f"line {number}: {name} is not there")
        if hash_file(listed) != match[1].lower():
            raise _Damaged(f"line {number}: {name} is another than was listed")


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
    ".bin": _check_weights,
    ".npy": _check_nothing,
}
