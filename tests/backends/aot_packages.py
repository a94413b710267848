"""AOTInductor packages for the tests: compiled once, and kept for the next run on such a machine with such a torch."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from tests.backends.cases import PairModule
from torch.export import Dim

from preheat_backends.hardware import find_device

_KEPT = Path(__file__).parents[2] / "build" / "test-aot-packages"
_SOURCES = Path(__file__).parents[2] / "backends" / "preheat_backends" / "aot_inductor"

# It answers as `PairModule` does, by way of an embedding: so its kernels check an index.
LOOKUP_SOURCE = """
    import torch

    class Lookup(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.arange(4, dtype=torch.float32).reshape(4, 1))

        def forward(self, values, mask):
            masked = values * self.table(mask).squeeze(-1)
            return masked, masked.sum(dim=1, keepdim=True)

    def build_model():
        return Lookup()
"""
# Of the vocabulary: beyond it, an index fails.
WORDS = 4
LOOKUP_CONFIG = """
backend: "eager"
max_batch_size: 8
input { name: "values" data_type: TYPE_FP32 dims: [ -1 ] }
input { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "masked" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "total" data_type: TYPE_FP32 dims: [ 1 ] }
dynamic_batching { }
parameters { key: "preheat.shape.values" value { string_value: "sequence" } }
parameters { key: "preheat.shape.mask" value { string_value: "sequence" } }
parameters { key: "preheat.shape.masked" value { string_value: "sequence" } }
parameters { key: "preheat.dimension.sequence" value { string_value: "1..64" } }
"""


def keep(name: str, make: Callable[[Path], None], into: Path, *, sources: Sequence[str] = ()) -> None:
    """Put into folder ``into`` what ``make`` writes into a folder, from the last run if nothing has changed since.

    ``sources`` are modules of the build tool that it depends on.
    """
    kept = _KEPT / f"{name}-{_key(sources)}"
    if not kept.exists():
        _KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_KEPT) as unfinished:
            made = Path(unfinished) / "made"
            made.mkdir()
            make(made)
            with suppress(OSError):  # someone else's was there first
                made.rename(kept)
    shutil.copytree(kept, into, dirs_exist_ok=True)


def _key(sources: Sequence[str]) -> str:
    """What packages depend on: torch, the CPU, and the code that makes them."""
    digest = hashlib.sha256(f"{torch.__version__} {os.cpu_count()}".encode())
    digest.update(" ".join(sorted(find_device("cpu").instructions)).encode())
    for source in (Path(__file__), *(_SOURCES / f"{name}.py" for name in sources)):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def save_own_model(folder: Path) -> None:
    """Write the model in ``LOOKUP_SOURCE`` and its configuration, built by the command line of our tool."""
    keep("own", _build_own, folder, sources=("tracing", "packaging", "description", "build"))


def save_own_package(folder: Path) -> None:
    """Write the same model's package alone, into a version's folder."""
    with tempfile.TemporaryDirectory() as made:
        save_own_model(Path(made))
        shutil.copy(Path(made) / "1" / "model.pt2", folder)


def save_foreign_package(folder: Path) -> None:
    """Write a package of `PairModule` made with torch's own means, into a version's folder."""
    keep("foreign", _build_foreign, folder)


def _build_own(folder: Path) -> None:
    eager = folder / "eager"
    (eager / "1").mkdir(parents=True)
    (eager / "1" / "model.py").write_text(textwrap.dedent(LOOKUP_SOURCE))
    (eager / "config.pbtxt").write_text(LOOKUP_CONFIG)
    command = [sys.executable, "-m", "preheat_backends.aot_inductor.build", str(eager), str(folder / "package")]
    built = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stderr
    (folder / "said.txt").write_text(built.stdout)
    for child in (folder / "package").iterdir():
        child.rename(folder / child.name)
    shutil.rmtree(eager)
    (folder / "package").rmdir()


def _build_foreign(folder: Path) -> None:
    axes = {0: Dim("batch", min=1, max=8), 1: Dim("sequence", min=1, max=64)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecations, in its compiler
        program = torch.export.export(
            PairModule().eval(),
            (torch.zeros(2, 5),),
            {"mask": torch.ones(2, 5, dtype=torch.int64)},
            dynamic_shapes={"values": axes, "mask": axes},
        )
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / "model.pt2"),
            inductor_configs={"aot_inductor.check_lowerbound": False, "cpp.dynamic_threads": True},
        )


def rewrite(
    path: Path,
    *,
    metadata: Mapping[str, str | None] | None = None,
    edit: Callable[[str, bytes], bytes | None] = lambda _, content: content,
) -> None:
    """Write the package at ``path`` anew, as torch would: ``metadata`` in place of its own, None taking a key out.

    ``edit`` is given each member's name and content, and returns its new content, None for none.
    """

    def change(name: str, content: bytes) -> bytes | None:
        if metadata is not None and name.endswith("_metadata.json"):
            told: dict[str, Any] = {**json.loads(content), **metadata}
            content = json.dumps({key: value for key, value in told.items() if value is not None}).encode()
        return edit(name, content)

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            changed = change(name, content)
            if changed is not None:
                archive.writestr(name, changed)
