"""AOTInductor's backend with every input at the edge of memory: no read beyond it passes. Runs in the server.

Each batch is run twice: with poison behind each input, which shows in the answer if it is read; and with a page behind
it that must not be touched, where reading ends the process.

As a program it calls a package directly, past all checks, with a mask that is too short for its values:
``guarded_backend.py poison|wall PACKAGE``.
"""

import ctypes
import json
import mmap
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from preheat.backend import (
    Backend,
    Dimension,
    Hardware,
    Instance,
    Model,
    ModelSource,
    PartialConfig,
    Session,
    Signature,
    TensorSession,
    TensorSpec,
)
from preheat.errors import ExecutionFailed
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.aot_inductor import AotInductorBackend
from preheat_backends.aot_inductor.calling import Calling

POISON = 12345
_PAGES = 64
_PROT_NONE = 0


class EdgeOfMemory:
    """Room for one array, that ends where something else begins: poison, or a page that is not to be touched."""

    def __init__(self, *, wall: bool) -> None:
        self._map = mmap.mmap(-1, 2 * _PAGES * mmap.PAGESIZE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._edge = _PAGES * mmap.PAGESIZE
        self._wall = wall
        if wall:
            library = ctypes.CDLL(None, use_errno=True)
            address = ctypes.c_void_p(self._bytes.ctypes.data + self._edge)
            assert library.mprotect(address, ctypes.c_size_t(self._edge), _PROT_NONE) == 0, os.strerror(
                ctypes.get_errno()
            )

    def place(self, array: Array) -> Array:
        """A copy of ``array``, with its last byte the last before the edge."""
        end = self._edge if self._wall else len(self._bytes)
        # Poison before it too: what is read there shows.
        whole = self._bytes[: end // array.itemsize * array.itemsize].view(array.dtype)
        whole[:] = POISON
        start = self._edge - array.nbytes
        placed: Array = self._bytes[start : self._edge].view(array.dtype).reshape(array.shape)
        placed[...] = array
        return placed


class GuardedSession(TensorSession):
    """A session of a package, and the edges that its inputs are put to."""

    def __init__(self, inner: TensorSession, inputs: tuple[str, ...]) -> None:
        self._inner = inner
        self._edges = {wall: {name: EdgeOfMemory(wall=wall) for name in inputs} for wall in (False, True)}

    def infer(self, inputs: Tensors) -> Tensors:
        """Run twice, and compare."""
        poisoned, walled = (
            {name: array.copy() for name, array in self._inner.infer(self._placed(inputs, wall=wall)).items()}
            for wall in (False, True)
        )
        for name, array in poisoned.items():
            if not np.array_equal(array, walled[name]) or (np.abs(array) >= POISON).any():
                raise ExecutionFailed(f"poison in output {name!r}")
        return walled

    def close(self) -> None:
        """Close the session."""
        self._inner.close()

    def _placed(self, inputs: Tensors, *, wall: bool) -> Tensors:
        return {name: self._edges[wall][name].place(array) for name, array in inputs.items()}


class GuardedModel(Model):
    """A package whose sessions are guarded."""

    def __init__(self, inner: Model, inputs: tuple[str, ...]) -> None:
        self._inner = inner
        self._inputs = inputs

    def open(self, instance: Instance) -> Session:
        """Open a guarded session."""
        session = self._inner.open(instance)
        assert isinstance(session, TensorSession)
        return GuardedSession(session, self._inputs)

    def close(self) -> None:
        """Close the package."""
        self._inner.close()


class InPlaceBackend(AotInductorBackend):
    """Has foreign packages read their inputs where they lie, as those of its own tool do: so at the edge."""

    def match_call(self, *arguments: Any) -> Calling:
        """As the other, but for that."""
        return replace(super().match_call(*arguments), writes_inputs=False)


class GuardedBackend(Backend):
    """Only where the package's own checks are off: else nothing would be shown of the server's."""

    def __init__(self) -> None:
        self._inner = InPlaceBackend()

    def hardware(self) -> Hardware:
        """As the other."""
        return self._inner.hardware()

    def complete(self, source: ModelSource) -> PartialConfig:
        """As the other."""
        return self._inner.complete(source)

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Load the package."""
        assert os.environ["AOTI_RUNTIME_CHECK_INPUTS"] == "0"
        return GuardedModel(self._inner.load(source, signature), tuple(spec.name for spec in signature.inputs))


def main(kind: str, package: str) -> None:
    """Print the answer to what no server lets through."""
    sequence = Dimension("sequence", 1, 64)
    signature = Signature(
        (TensorSpec("values", DataType.FP32, (sequence,)), TensorSpec("mask", DataType.INT64, (sequence,))),
        (TensorSpec("masked", DataType.FP32, (sequence,)),),
        8,
    )
    path = Path(package)
    source = ModelSource("m", 1, version_path=path.parent, config_path=path.parent.parent / "config.pbtxt")
    session: Any = InPlaceBackend().load(source, signature).open(Instance(0, "cpu", 1))
    values, mask = np.ones((8, 64), np.float32), np.ones((1, 1), np.int64)
    answer = session.infer({"values": values, "mask": EdgeOfMemory(wall=kind == "wall").place(mask)})["masked"]
    sys.stdout.write(json.dumps(answer.ravel().tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
