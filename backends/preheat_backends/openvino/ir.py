"""OpenVINO's own format: ``model.xml`` has the graph, ``model.bin`` the weights, referred to by offset and size alone.

Nothing in the two files says that they belong together, and with weights of another model OpenVINO computes whatever
they make. Their size is the one thing that tells.
"""

import re
from pathlib import Path

from preheat.errors import InvalidArtifact

_VERSION = re.compile(rb'<net\b[^>]*\sversion="(\d+)"')
_DATA = re.compile(rb"<data\b[^>]*>")
_OFFSET = re.compile(rb'\soffset="(\d+)"')
_SIZE = re.compile(rb'\ssize="(\d+)"')
# Anything else OpenVINO offers to the readers of all the formats that it knows, and says that none wants it.
_VERSIONS = (10, 11)


def check_ir(path: Path) -> None:
    """Raise InvalidArtifact unless ``path`` is whole, of a known version, and its weights are as long as it says."""
    xml = path.read_bytes()
    if not xml.rstrip().endswith(b"</net>"):
        raise InvalidArtifact(f"{path}: damaged OpenVINO IR: it does not end with </net>, so it is cut short")
    version = _VERSION.search(xml)
    if version is None or int(version[1]) not in _VERSIONS:
        told = "none" if version is None else version[1].decode()
        raise InvalidArtifact(f"{path}: its IR version is {told}; openvino reads {' and '.join(map(str, _VERSIONS))}")
    _check_weights(path, max(map(_end, _DATA.findall(xml)), default=0))


def _check_weights(path: Path, needed: int) -> None:
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        if needed:
            raise InvalidArtifact(f"{path}: its weights are missing: {weights.name} should be beside it")
        return
    size = weights.stat().st_size
    if size != needed:
        raise InvalidArtifact(
            f"{weights} has {size} bytes, but {path.name} refers to {needed} bytes of weights: "
            "it is cut short, or another model's; copy both files anew"
        )


def _end(tag: bytes) -> int:
    offset, size = _OFFSET.search(tag), _SIZE.search(tag)
    return int(offset[1]) + int(size[1]) if offset and size else 0
