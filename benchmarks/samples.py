"""The one row that a model is asked with, again and again, where its speed is measured: rows alike share batches."""

import json
from pathlib import Path
from typing import Any

import grpc
from loadtests.description import describe_model
from loadtests.options import LoadOptions
from loadtests.rows import Row, read_rows

_CONTENT_KEYS = ("content", "b64")


def write_sample(model: Path, path: Path) -> None:
    """Write the middle one by size of the samples that ``model`` carries, in perf_analyzer's format."""
    entries = json.loads((model / "data" / "perf_analyzer.json").read_text(encoding="utf-8"))["data"]
    chosen = sorted(entries, key=_size)[len(entries) // 2]
    path.write_text(json.dumps({"data": [chosen]}), encoding="utf-8")


def read_sample(address: str, model: str, path: Path) -> Row:
    """The row in ``path``, as arrays of what the server at ``address`` says the inputs of ``model`` are."""
    with grpc.insecure_channel(address) as channel:
        described = describe_model(channel, model, "")
    assert described.max_batch_size, f"{model} has no batch axis"
    (row,) = read_rows(path, described, LoadOptions(model, "", 1, {}, 1, path, 10.0))
    return row


def _size(entry: dict[str, Any]) -> int:
    return sum(_content_size(each) for each in entry.values())


def _content_size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(value[key]) for key in _CONTENT_KEYS if key in value)
    return len(value)
