"""Models that are compiled, for the tests of the backends that do it, and what they state while they run."""

import textwrap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from tests.backends.cases import FOUR, MAX_BATCH, make_source, open_session

from preheat.backend import Backend, Buckets, Dimension, Model, Signature, TensorSession, TensorSpec
from preheat.compilations import Compilation, recording
from preheat.scheduling.pacing import Pace
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.torch_compile import TorchCompileBackend

# A matrix product is a call into a library: inductor has no kernel to compile for it, which takes seconds.
LINEAR_NETWORK = """
    def forward(self, x):
        return self.layer(x)
"""
POINTWISE_NETWORK = """
    def forward(self, x):
        return self.layer(torch.sigmoid(x) * 2)
"""
BREAKING_NETWORK = """
    def forward(self, x):
        x = self.layer(x)
        torch._dynamo.graph_break()
        return self.layer(x)
"""
# What it reads of itself is another thing at each call, and dynamo guards on it.
COUNTING_NETWORK = """
    def forward(self, x):
        self.calls = getattr(self, "calls", "") + "x"
        return self.layer(x)
"""
SOURCE = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        # Not torch.manual_seed, which is the whole process's: networks load beside each other.
        dice = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=dice)
{forward}
def build_model():
    return Network()
"""

SEQUENCE = Dimension("sequence", minimum=1, maximum=64)
SQUARE = Signature((TensorSpec("x", DataType.FP32, (FOUR,)),), (TensorSpec("y", DataType.FP32, (FOUR,)),), MAX_BATCH)
SEQUENCES = Signature(
    (TensorSpec("x", DataType.FP32, (SEQUENCE, FOUR)),), (TensorSpec("y", DataType.FP32, (SEQUENCE, FOUR)),), MAX_BATCH
)


def save_network(folder: Path, forward: str) -> Path:
    """Write a ``model.py`` with a linear layer of four by four and that ``forward``; returns the model's folder."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    body = textwrap.indent(textwrap.dedent(forward), "    ")
    (folder / "1" / "model.py").write_text(SOURCE.format(forward=body))
    return folder


def load(
    folder: Path,
    signature: Signature = SQUARE,
    *,
    backend: Backend | None = None,
    parameters: Mapping[str, str] | None = None,
    **settings: Any,
) -> Model:
    source = make_source(folder, parameters=dict(parameters or {}), **settings)
    return (backend or TorchCompileBackend()).load(source, signature)


def rows(count: int, *, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).random((count, 4), np.float32)}


def sequences(count: int, length: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(0).random((count, length, 4), np.float32)}


class Instances:
    """A model's instances, each on a thread of its own as in the server, and all that they stated.

    They open and run at ``pace``.
    """

    def __init__(self, model: Model, count: int = 1, *, threads: int = 1, pace: Pace = nullcontext) -> None:
        self.model = model
        self._pace = pace
        self.stated: list[Compilation] = []
        self._threads = [ThreadPoolExecutor(1) for _ in range(count)]
        self._sessions = [
            thread.submit(self._open, ordinal, threads=threads).result() for ordinal, thread in enumerate(self._threads)
        ]

    def _open(self, ordinal: int, *, threads: int) -> TensorSession:
        with self._pace():
            return open_session(self.model, ordinal, threads=threads)

    def infer(self, inputs: Tensors, *, on: int = 0, eagerly: bool = False) -> Tensors:
        return self._threads[on].submit(self._infer, self._sessions[on], inputs, eagerly=eagerly).result()

    def infer_everywhere(self, inputs: Tensors) -> list[Tensors]:
        """Run on all instances at once."""
        futures = [
            thread.submit(self._infer, session, inputs, eagerly=False)
            for thread, session in zip(self._threads, self._sessions, strict=True)
        ]
        return [future.result() for future in futures]

    def take(self) -> list[Compilation]:
        """What was stated since it was last asked."""
        stated, self.stated = self.stated, []
        return stated

    def close(self) -> None:
        for thread, session in zip(self._threads, self._sessions, strict=True):
            thread.submit(session.close).result()
            thread.shutdown()
        self._sessions.clear()
        self.model.close()

    def _infer(self, session: TensorSession, inputs: Tensors, *, eagerly: bool) -> Tensors:
        with recording(self.stated.append), self._pace():
            return session.infer_eagerly(inputs) if eagerly else session.infer(inputs)


@contextmanager
def serving(model: Model, count: int = 1, *, threads: int = 1, pace: Pace = nullcontext) -> Iterator[Instances]:
    instances = Instances(model, count, threads=threads, pace=pace)
    try:
        yield instances
    finally:
        instances.close()


def buckets(*batch: int, **settings: Any) -> Buckets:
    return Buckets(rows=batch, **settings)
