"""A network whose layers are large enough for every way of quantizing, and how near an answer is to another's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests.backends.compiling import load

from preheat.backend import Dimension, Model, Signature, TensorSpec
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.torchao import TorchaoBackend

WIDTH = 64
SOURCE = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64)
        self.head = torch.nn.Linear(64, 4)

    def forward(self, x):
        hidden = self.down(torch.nn.functional.relu(self.up(x))) + x
        return self.head(hidden)

def build_model():
    with torch.device({device!r}):
        return Network()
"""
ROWS = Signature(
    (TensorSpec("x", DataType.FP32, (Dimension.fixed(WIDTH),)),),
    (TensorSpec("y", DataType.FP32, (Dimension.fixed(4),)),),
    8,
)
SEQUENCE = Dimension("sequence", minimum=1, maximum=16)
SEQUENCES = Signature(
    (TensorSpec("x", DataType.FP32, (SEQUENCE, Dimension.fixed(WIDTH))),),
    (TensorSpec("y", DataType.FP32, (SEQUENCE, Dimension.fixed(4))),),
    8,
)


def save_network(folder: Path, *, weights: bool = True) -> Path:
    """Write ``model.py`` and, unless without ``weights``, ``model.safetensors``; returns the model's folder."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.py").write_text(SOURCE.format(device="meta"))
    if weights:
        save_file(make_module().state_dict(), folder / "1" / "model.safetensors")
    return folder


def make_module() -> torch.nn.Module:
    """The same network each time, with weights, in eval mode."""
    names: dict[str, Any] = {}
    exec(SOURCE.format(device="cpu"), names)  # noqa: S102 - the text above
    module: torch.nn.Module = names["build_model"]()
    # Not torch.manual_seed, which is the whole process's: networks load beside each other.
    dice = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=dice)
    return module.eval().requires_grad_(requires_grad=False)


def rows(count: int, *, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)}


def sequences(count: int, length: int, *, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((count, length, WIDTH), np.float32)}


def expected(inputs: Tensors) -> Array:
    """What the network gives in floating point."""
    result: Array = make_module()(torch.from_numpy(inputs["x"])).numpy()
    return result


def decibels(answer: Array, exact: Array) -> float:
    """How much larger ``exact`` is than what ``answer`` differs from it by."""
    difference = np.square(answer - exact).sum()
    return float(10 * np.log10(np.square(exact).sum() / difference)) if difference else float("inf")


def load_quantized(
    folder: Path,
    quantization: str,
    signature: Signature = ROWS,
    parameters: Mapping[str, str] | None = None,
    **settings: Any,
) -> Model:
    return load(
        folder,
        signature,
        backend=TorchaoBackend(),
        parameters={"quantization": quantization, **(parameters or {})},
        **settings,
    )
