"""What files and folders of a repository are called, and what that makes of them. Pure."""

import re
from collections.abc import Iterator
from itertools import count

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_PUT_ASIDE = re.compile(r"\.rolled-back-(\d+)(-\d+)?")


def is_model_name(name: str) -> bool:
    """Whether a model can be called so: a plain name, which is no way out of any folder."""
    return not is_ignored(name) and _MODEL.fullmatch(name) is not None


def is_version(name: str) -> bool:
    """Whether a folder called ``name`` is a version: a whole number of at least 1, without leading zeros."""
    return _VERSION.fullmatch(name) is not None


def is_ignored(name: str) -> bool:
    """Hidden files are those of whoever copies, and Python leaves its caches beside a model's code."""
    return name.startswith(".") or name == "__pycache__"


def is_plain(name: str) -> bool:
    """Whether a client may call a file or folder so: it leads nowhere, and it is no ignored one."""
    return bool(name) and not is_ignored(name) and "\\" not in name and "\0" not in name


def names_aside(version: int) -> Iterator[str]:
    """What the folder of a version can be called that was put aside; hidden, so that it is none. Without end."""
    yield f".rolled-back-{version}"
    yield from (f".rolled-back-{version}-{number}" for number in count(2))


def version_aside(name: str) -> int | None:
    """Which version was put aside under ``name``; None if that is none."""
    match = _PUT_ASIDE.fullmatch(name)
    return int(match[1]) if match else None
