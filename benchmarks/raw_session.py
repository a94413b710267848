"""A model loaded as the server loads it, whose session can be run in a loop on the thread that owns it.

The main program of a process of its own, which :class:`benchmarks.raw.RawProcess` starts: Triton's client, which the
benchmarks use, and the server's own protocol cannot be in one.
"""

import json
import os
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from preheat.backend import (
    Backend,
    Hardware,
    Instance,
    Model,
    ModelSource,
    PartialConfig,
    Session,
    Signature,
    TensorSession,
)
from preheat.cache import CompileCache
from preheat.messages import InferRequest, InferResponse, InputTensor
from preheat.models.lifecycle import Lifecycle, State
from preheat.models.loader import Loader, LoadLimits
from preheat.plugins import load_backend
from preheat.repository.scan import ModelFolder, read_model
from preheat.scheduling.pending import Answer
from preheat.tensors import DataType, Tensors, to_raw

_LONGEST_S = 600.0
_CACHE_BYTES = 10 * 2**30


class Loop:
    """How long the next call of the session is to be repeated, and then how long one call took.

    Set by whoever sends the request, read and answered by the session's thread; one request at a time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.call_s = 0.0


class _LoopingSession(TensorSession):
    def __init__(self, inner: TensorSession, loop: Loop) -> None:
        self._inner = inner
        self._loop = loop

    def allocate(self, size: int) -> Any:
        return self._inner.allocate(size)

    def infer(self, inputs: Tensors) -> Tensors:
        outputs = self._inner.infer(inputs)
        if not self._loop.seconds:
            return outputs
        calls, began_s = 0, time.perf_counter()
        while (now_s := time.perf_counter()) < began_s + self._loop.seconds or not calls:
            outputs = self._inner.infer(inputs)
            calls += 1
        self._loop.call_s = (now_s - began_s) / calls
        return outputs

    def infer_eagerly(self, inputs: Tensors) -> Tensors:
        return self._inner.infer_eagerly(inputs)

    def close(self) -> None:
        self._inner.close()


class _LoopingModel(Model):
    def __init__(self, inner: Model, loop: Loop) -> None:
        self._inner = inner
        self._loop = loop
        self.specializes_on_shape = inner.specializes_on_shape
        self.runs_eagerly = inner.runs_eagerly

    def open(self, instance: Instance) -> Session:
        session = self._inner.open(instance)
        assert isinstance(session, TensorSession), "a model that sees requests whole has no batches to run in a loop"
        return _LoopingSession(session, self._loop)

    def close(self) -> None:
        self._inner.close()


class _LoopingBackend(Backend):
    def __init__(self, inner: Backend, loop: Loop) -> None:
        self._inner = inner
        self._loop = loop

    def hardware(self) -> Hardware:
        return self._inner.hardware()

    def environment(self, source: ModelSource) -> str | None:
        return self._inner.environment(source)

    def complete(self, source: ModelSource) -> PartialConfig:
        return self._inner.complete(source)

    def load(self, source: ModelSource, signature: Signature) -> Model:
        return _LoopingModel(self._inner.load(source, signature), self._loop)


class RawModel:
    """The model in ``folder``, warm from ``__enter__`` to ``__exit__``, with the compile cache in ``cache``."""

    def __init__(self, folder: Path, cache: Path) -> None:
        model = read_model(folder)
        assert isinstance(model, ModelFolder), model.reason
        self._folder = model
        self._cache = cache
        self._loop = Loop()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        cache = self._stack.enter_context(closing(CompileCache(self._cache, max_bytes=_CACHE_BYTES)))
        loader = Loader(
            lambda name: _LoopingBackend(load_backend(name), self._loop),
            limits=LoadLimits(1, 2**30, os.cpu_count() or 1),
            observer=lambda _: None,
            cache=cache,
        )
        lifecycle = Lifecycle(self._folder.path.name, self._folder.versions[-1], observer=lambda _: None)
        self._handle = loader.load(self._folder, lifecycle).handle
        lifecycle.move_to(State.READY)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        self._stack.close()

    def call_s(self, row: Tensors, rows: int, seconds: float) -> float:
        """How long a call takes with ``rows`` times ``row``, padded as the server pads it; the mean of ``seconds``."""
        self._loop.seconds = seconds
        answers = SimpleQueue[Answer]()

        def reply(answer: Answer) -> Answer:
            answers.put(answer)
            return answer

        # A lone request is a batch, so this is how large the batch is.
        self._handle.submit(InferRequest(self._handle.name, "", "", _inputs(row, rows)), reply)
        answer = answers.get(timeout=seconds + _LONGEST_S)
        self._loop.seconds = 0.0
        assert isinstance(answer, InferResponse), answer
        return self._loop.call_s


def _inputs(row: Tensors, rows: int) -> tuple[InputTensor, ...]:
    return tuple(
        InputTensor(name, DataType.of(array.dtype).value, (rows, *array.shape), to_raw(np.stack([array] * rows)))
        for name, array in row.items()
    )


def main() -> None:
    """Load what the command line names, say so, and answer each line ``{"rows": N, "seconds": N}`` with seconds."""
    folder, cache, sample = map(Path, sys.argv[1:])
    # Libraries print as well.
    answers, sys.stdout = sys.stdout, sys.stderr
    with np.load(sample) as file:
        row = {name: file[name] for name in file.files}
    with RawModel(folder, cache) as model:
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            print(model.call_s(row, asked["rows"], asked["seconds"]), file=answers, flush=True)


if __name__ == "__main__":
    main()
