"""Files that several models have in common: made once, and given to the others."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[Path, Path], str]


def copy_of(path: str) -> Make:
    """Return the way to make a copy of another artifact, or of a file of the repository."""

    def make(repository: Path, target: Path) -> str:
        shutil.copyfile(repository / path, target)
        return f"as {path}"

    return make


def link_to(path: str) -> Make:
    """Return the way to give another artifact a second name: no room is taken. A copy where there are no hard links."""

    def make(repository: Path, target: Path) -> str:
        target.unlink()
        try:
            os.link(repository / path, target)
        except OSError:
            shutil.copyfile(repository / path, target)
            return f"a copy of {path}"
        return f"the same file as {path}"

    return make
