"""A version's artifact: where it lies, and what kind of file it is.

The kind is told from the bytes, because names lie: ``.pt2`` is two formats, ``.pt`` three, and a file that was never
pulled, or half copied, has the right name too. So a wrong artifact is refused with a sentence that says what it is,
instead of with whatever its library makes of foreign bytes. Nothing here executes or unpickles anything.
"""

import codecs
import enum
import mmap
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from preheat.backend import ModelSource
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat_backends import wire


class Kind(enum.Enum):
    """What a path holds. The value ends a sentence that begins with the path and "is"."""

    EXPORTED_PROGRAM = "a torch.export program"
    AOTINDUCTOR_PACKAGE = "an AOTInductor package"
    TORCHSCRIPT = "a TorchScript archive"
    CHECKPOINT = "a torch.save checkpoint"
    PICKLE = "a Python pickle"
    SAFETENSORS = "a safetensors file"
    SAFETENSORS_CUT_SHORT = "a safetensors file that is cut short"
    ONNX = "an ONNX model"
    ONNX_CUT_SHORT = "an ONNX model that is cut short"
    OPENVINO_IR = "an OpenVINO IR model"
    TENSORRT_PLAN = "a TensorRT engine plan"
    TENSORRT_RTX_PLAN = "a TensorRT-RTX engine plan"
    ZIP = "a zip archive of no kind known here"
    ZIP_CUT_SHORT = "a zip archive that is cut short or damaged"
    GIT_LFS_POINTER = "a git-lfs pointer in place of its file (git lfs pull fetches it)"
    TEXT = "a text file"
    EMPTY = "an empty file"
    DIRECTORY = "a directory"
    SPECIAL = "a device, pipe or socket"
    UNKNOWN = "a file of no kind known here"


@dataclass(frozen=True, slots=True)
class Takes:
    """What a backend accepts as a version's artifact.

    ``names`` are the file names it looks for, the preferred first; ``kinds`` what such a file may be; ``description``
    ends a sentence that begins "the backend takes".
    """

    backend: str
    names: tuple[str, ...]
    kinds: frozenset[Kind]
    description: str

    def refuse(self, path: Path, kind: Kind) -> InvalidArtifact:
        """The error for an artifact of ``kind``."""
        return InvalidArtifact(f"{path} is {kind.value}; the backend {self.backend!r} takes {self.description}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a kind that its backend takes."""

    path: Path
    kind: Kind


def find_artifact(source: ModelSource, takes: Takes) -> Artifact:
    """The artifact of a version: the file the configuration names, else the first of ``takes.names`` there is.

    Raises InvalidConfig for a configured name that is no plain file name, InvalidArtifact if there is no such file or
    it is of another kind.
    """
    names = takes.names if source.artifact_name is None else (_plain_name(source, source.artifact_name),)
    path = _first_existing(source.version_path, names, takes)
    kind = sniff(path)
    if kind not in takes.kinds:
        raise takes.refuse(path, kind)
    return Artifact(path, kind)


def check_archive(path: Path) -> None:
    """Read the zip archive at ``path`` in whole. Raises InvalidArtifact if anything in it is not as it was written.

    torch itself does not look at an archive's checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as exc:  # of a damaged archive zipfile raises half a dozen types, few documented
        raise InvalidArtifact(f"{path} is damaged: {exc}; copy it again") from exc
    if damaged is not None:
        raise InvalidArtifact(f"{path} is damaged: {damaged!r} in it is not as it was written; copy it again")


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is one component of a path, and so cannot lead out of the version's folder."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def sniff(path: Path) -> Kind:
    """What ``path``, which exists, holds. Reads a few kilobytes, however large the file.

    Raises InvalidArtifact if it cannot be read.
    """
    if path.is_dir():
        return Kind.DIRECTORY
    if not path.is_file():
        return Kind.SPECIAL
    try:
        with path.open("rb") as file:
            return _sniff_file(file)
    except OSError as exc:
        raise InvalidArtifact(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _plain_name(source: ModelSource, name: str) -> str:
    if not is_plain_name(name):
        raise InvalidConfig(
            f"{source.config_path}: default_model_filename: {name!r}: must be a file's name in the version's folder"
        )
    return name


def _first_existing(folder: Path, names: tuple[str, ...], takes: Takes) -> Path:
    if not folder.is_dir():
        raise InvalidArtifact(f"{folder}: no such folder; the backend {takes.backend!r} takes {takes.description}")
    for name in names:
        if (folder / name).exists():
            return folder / name
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise InvalidArtifact(
        f"{folder} has no {' and no '.join(names)} (it holds {present}); "
        f"the backend {takes.backend!r} takes {takes.description}"
    )


_HEAD_BYTES = 4096
_MAGICS = (
    (b"version https://git-lfs.github.com/spec/", Kind.GIT_LFS_POINTER),
    (b"ftrt", Kind.TENSORRT_PLAN),
    (b"ptrt", Kind.TENSORRT_PLAN),  # before TensorRT 8
    (b"vtrt", Kind.TENSORRT_RTX_PLAN),
    # torch.save before 1.6: pickle protocol 2, and the number that torch signs its files with.
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", Kind.CHECKPOINT),
)


def _sniff_file(file: BinaryIO) -> Kind:
    head = file.read(_HEAD_BYTES)
    if not head:
        return Kind.EMPTY
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(file)
    return _sniff_safetensors(file, head) or _sniff_onnx(file) or _sniff_pickle(file, head) or _sniff_text(head)


def _sniff_zip(file: BinaryIO) -> Kind:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception:  # of a damaged archive zipfile raises half a dozen types, few documented
        return Kind.ZIP_CUT_SHORT
    if min((member.header_offset for member in members), default=0) > 0:
        # The directory is that of an archive within this one, whose own has been cut off.
        return Kind.ZIP_CUT_SHORT
    return _archive_kind(member.filename for member in members)


def _archive_kind(names: Iterable[str]) -> Kind:
    """Which of torch's archives has these members. All but the oldest put them in one folder of any name."""
    members = {name.partition("/")[2] or name for name in names}
    if "serialized_exported_program.json" in members or any(
        member.startswith("models/") and member.endswith(".json") for member in members
    ):
        return Kind.EXPORTED_PROGRAM
    if any(member.startswith("data/aotinductor/") for member in members):
        return Kind.AOTINDUCTOR_PACKAGE
    if "constants.pkl" in members:
        return Kind.TORCHSCRIPT
    return Kind.CHECKPOINT if "data.pkl" in members else Kind.ZIP


_SAFETENSORS_HEADER_LIMIT = 100_000_000  # the format's own


def _sniff_safetensors(file: BinaryIO, head: bytes) -> Kind | None:
    """Eight bytes of length, then that much JSON, padded with spaces."""
    length = int.from_bytes(head[:8], "little")
    if not head[8:].startswith(b"{") or not 2 <= length <= _SAFETENSORS_HEADER_LIMIT:
        return None
    if 8 + length > _size(file):
        # Cut inside the header; a name must follow the brace, lest any file with a brace there be taken for one.
        return Kind.SAFETENSORS_CUT_SHORT if head[8:].startswith(b'{"') else None
    file.seek(max(8, length))
    return Kind.SAFETENSORS if file.read(8 + length - file.tell()).rstrip(b" ").endswith(b"}") else None


_IR_VERSION, _GRAPH = 1, 7
_MODEL_NUMBERS = frozenset({_IR_VERSION, 5})
_MODEL_MESSAGES = frozenset({2, 3, 4, 6, _GRAPH, 8, 14, 20, 25, 26})


def _sniff_onnx(file: BinaryIO) -> Kind | None:
    """A ModelProto as far as its graph: the fields before it are few and small."""
    seen: set[int] = set()
    try:
        for number, value in wire.fields(map_file(file)):
            if number not in (_MODEL_NUMBERS if isinstance(value, int) else _MODEL_MESSAGES):
                return None
            if number == _GRAPH and isinstance(value, memoryview):
                next(wire.fields(value), None)
                return Kind.ONNX if _IR_VERSION in seen else None
            seen.add(number)
    except wire.CutShort as exc:
        return Kind.ONNX_CUT_SHORT if exc.field == _GRAPH and _IR_VERSION in seen else None
    except wire.MalformedMessage:
        return None
    return None


def map_file(file: BinaryIO) -> memoryview:
    """The bytes of ``file``, which is not empty, mapped for as long as the view or a slice of it lives."""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _sniff_pickle(file: BinaryIO, head: bytes) -> Kind | None:
    if head[0] != 0x80 or head[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return None
    file.seek(_size(file) - 1)
    return Kind.PICKLE if file.read(1) == b"." else None


# XML whose root is a net. A declaration and comments may come first.
_IR_HEAD = re.compile(r"\ufeff?\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<net[\s>]", re.DOTALL)


def _sniff_text(head: bytes) -> Kind:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the head may end within a character
    except UnicodeDecodeError:
        return Kind.UNKNOWN
    if _IR_HEAD.match(text):
        return Kind.OPENVINO_IR
    return Kind.TEXT if all(character.isprintable() or character in "\t\n\r\f" for character in text) else Kind.UNKNOWN


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)
