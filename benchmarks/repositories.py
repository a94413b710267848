"""Repositories made of the example models: copies under other names, configured otherwise."""

import os
import re
import shutil
from pathlib import Path

_NAME = re.compile(r'^name: "[^"]*"$', re.MULTILINE)
_BATCHING = re.compile(r"^dynamic_batching \{ \}$", re.MULTILINE)


def add_model(repository: Path, model: Path, name: str, *, batching: str | None = None) -> None:
    """Put ``model`` into ``repository`` as ``name``, with ``batching`` where it has ``dynamic_batching { }``.

    Links large files. Configurations are edited as text: Triton's client and the server each bring protobuf's classes
    of it, which cannot be in one process.
    """
    folder = repository / name
    shutil.copytree(model, folder, copy_function=_link_or_copy)
    file = folder / "config.pbtxt"
    text = _replaced(_NAME, f'name: "{name}"', file)
    # Not in place: it may be another name of the model's own file.
    file.unlink()
    file.write_text(text, encoding="utf-8")
    if batching is not None:
        file.write_text(_replaced(_BATCHING, batching, file), encoding="utf-8")


def _replaced(pattern: re.Pattern[str], text: str, file: Path) -> str:
    changed, count = pattern.subn(text, file.read_text(encoding="utf-8"))
    assert count == 1, f"{file} has {count} lines that match {pattern.pattern}"
    return changed


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
