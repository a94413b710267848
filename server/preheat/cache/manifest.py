"""An entry's manifest: what belongs to it, to the byte."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from preheat.cache.keys import FORMAT

LIMIT = 1 << 26
_SHA256_DIGITS = 64


class Damaged(Exception):
    """An entry is not what was stored: the text says what differs."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an entry: ``path`` is relative, with slashes."""

    path: str
    size: int
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """An entry as it was stored: for which key, when (seconds since 1970), with which record, and its files."""

    environment: str
    name: str
    backend: str
    environment_text: str
    created_s: float
    files: tuple[StoredFile, ...]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return sum(each.size for each in self.files)


def render(manifest: Manifest) -> bytes:
    """The manifest as it is stored. Raises TypeError or ValueError for a record that is no JSON."""
    body = {
        "format": FORMAT,
        "environment": manifest.environment,
        "name": manifest.name,
        "backend": manifest.backend,
        "environment_text": manifest.environment_text,
        "created_s": manifest.created_s,
        "record": dict(manifest.record),
        "files": [[each.path, each.size, each.sha256, each.executable] for each in manifest.files],
    }
    return json.dumps({"sha256": checksum(body), "entry": body}, indent=1, allow_nan=False).encode()


def parse(content: bytes) -> Manifest:
    """The manifest that :func:`render` made. Raises Damaged."""
    if len(content) > LIMIT:
        raise Damaged(f"manifest.json is larger than {LIMIT} bytes")
    try:
        document = json.loads(content, parse_constant=_refuse_constant)
        body = document["entry"]
        if document["sha256"] != checksum(body):
            raise Damaged("manifest.json does not have its checksum")
        if body["format"] != FORMAT:
            raise Damaged(f"manifest.json has format {body['format']!r}, this server reads {FORMAT}")
        return _manifest(body)
    except (ValueError, TypeError, LookupError, RecursionError) as exc:
        raise Damaged(f"manifest.json cannot be read: {type(exc).__name__}: {exc}") from exc


def checksum(body: object) -> str:
    """The SHA-256 of a manifest's ``entry``, however it is laid out as JSON."""
    text = json.dumps(body, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(body: Mapping[str, Any]) -> Manifest:
    """The checksum holds, so this is as somebody wrote it; nobody says that it was this server."""
    manifest = Manifest(
        environment=_field(body, "environment", str),
        name=_field(body, "name", str),
        backend=_field(body, "backend", str),
        environment_text=_field(body, "environment_text", str),
        created_s=_field(body, "created_s", float),
        record=_field(body, "record", dict),
        files=tuple(_file(*each) for each in _field(body, "files", list)),
    )
    if len({each.path for each in manifest.files}) != len(manifest.files):
        raise Damaged("manifest.json names a file twice")
    return manifest


def _field(body: Mapping[str, Any], key: str, kind: type) -> Any:
    value = body[key]
    if not isinstance(value, kind):
        raise Damaged(f"manifest.json: {key}: is no {kind.__name__}")
    return value


def _file(path: Any, size: Any, sha256: Any, executable: Any) -> StoredFile:
    if not isinstance(path, str) or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise Damaged(f"manifest.json has a path that may not be: {path!r}")
    # A bool is an int, and so is no size.
    if type(size) is not int or size < 0 or type(executable) is not bool:
        raise Damaged(f"manifest.json: {path}: has a size or a mode that cannot be")
    if not isinstance(sha256, str) or len(sha256) != _SHA256_DIGITS:
        raise Damaged(f"manifest.json: {path}: has no SHA-256")
    return StoredFile(path, size, sha256, executable)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
