"""A small text encoder as every backend that compiles takes it, and what it must answer."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Batch = Mapping[str, np.ndarray[Any, Any]]

# Weights are made by build_model, the same each time. POOLING is what a test puts in.
_SOURCE = """
import torch


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 16)
        self.layer = torch.nn.Linear(16, 16)
        # Models load beside each other, and torch.manual_seed is the whole process's.
        dice = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=dice)

    def forward(self, ids, mask):
        hidden = torch.nn.functional.gelu(self.layer(self.embedding(ids)))
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        {pooling}
        return {{"tokens": hidden, "pooled": pooled}}


def build_model():
    return Encoder().eval()
"""
HEEDS_MASK = "pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)"
IGNORES_MASK = "pooled = hidden.mean(dim=1)"
_CONFIG = """
backend: "{backend}"
max_batch_size: {rows}
input {{ name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }}
input {{ name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }}
output {{ name: "tokens" data_type: TYPE_FP32 dims: [ -1, 16 ] }}
output {{ name: "pooled" data_type: TYPE_FP32 dims: [ 16 ] }}
dynamic_batching {{ }}
instance_group {{ count: {instances} }}
"""
_PARAMETERS = {
    "preheat.shape.ids": "sequence",
    "preheat.shape.mask": "sequence",
    "preheat.shape.tokens": "sequence,_",
    "preheat.dimension.sequence": "1..64",
    "preheat.threads": "1",
}
PADS = {"preheat.pad.ids": "0", "preheat.pad.mask": "0"}


def write_encoder(
    repository: Path,
    name: str,
    backend: str,
    *,
    rows: int = 4,
    instances: int = 1,
    pooling: str = HEEDS_MASK,
    parameters: Mapping[str, str] | None = None,
) -> Path:
    """Write the model; its folder."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_SOURCE.format(pooling=pooling))
    lines = [_CONFIG.format(backend=backend, rows=rows, instances=instances)]
    for key, value in (_PARAMETERS | dict(parameters or {})).items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    (folder.parent / "config.pbtxt").write_text("\n".join(lines))
    return folder.parent


def bucketed(sizes: str, parameters: Mapping[str, str] | None = None) -> dict[str, str]:
    """The parameters of a model whose sequence has buckets."""
    return {"preheat.buckets.sequence": sizes, **PADS, **(parameters or {})}


def make_batch(dice: np.random.Generator, rows: int, length: int) -> Batch:
    """Random tokens, of which each row has at least one that counts."""
    mask = dice.integers(0, 2, (rows, length))
    mask[:, 0] = 1
    return {"ids": dice.integers(0, 100, (rows, length)), "mask": mask}


class Reference:
    """The encoder of ``folder`` in plain PyTorch, on inputs as they are."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("encoder_reference", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._network = module.build_model()

    def answer(self, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
        with torch.inference_mode():
            outputs = self._network(**{name: torch.from_numpy(array) for name, array in batch.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}
