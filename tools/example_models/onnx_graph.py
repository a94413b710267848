"""minilm as an ONNX graph, exported and compared with PyTorch before it is kept."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING

from tools.example_models.artifacts import MaterializeError
from tools.example_models.networks import load_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import Tensor, nn

    Batch = dict[str, NDArray[np.int64]]

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


def write_minilm_graph(repository: Path, target: Path) -> str:
    """Write the network and the weights of `minilm` as one graph."""
    model = load_network(repository / "minilm/1/model.py")
    _export(model, target)
    error = _largest_error(model, target, _samples(repository / "minilm/tokenizer.json"))
    if not error <= _TOLERANCE:  # written so that NaN is refused too
        raise MaterializeError(
            f"the graph differs from PyTorch by {error:.1e} of the embedding's length, allowed is {_TOLERANCE:.0e}; "
            "it was not written; try the versions of torch, onnxscript and onnxruntime that pyproject.toml names"
        )
    return f"within {error:.0e} of PyTorch"


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
