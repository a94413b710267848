"""One thread's way into the model: host arrays in, host arrays out."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from preheat.backend import Instance, Model, Session, Signature, TensorSession
from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat.errors import ExecutionFailed, InvalidRequest
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.host_arrays import marked_writable
from preheat_backends.openvino.compiled import Compiler
from preheat_backends.openvino.library import ov, reason_of
from preheat_backends.wording import list_shapes

_log = logging.getLogger(__name__)
_BF16 = DataType.BF16.numpy
# OpenVINO computes these in 32 bits on a CPU, and says nothing of what does not fit.
_NARROWED = frozenset({np.dtype(np.int64), np.dtype(np.uint64)})
_LEAST, _MOST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Ports:
    """Where in the model each tensor of ``signature`` is: its place among the inputs or the outputs."""

    signature: Signature
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


# Where sizes have no buckets there is no end of shapes; OpenVINO itself keeps as many kernels.
_MOST_SEEN = 5000


class OpenVinoModel(Model):
    """What its instances are compiled from, each for ``threads`` threads.

    ``varies``: some axis of some input has no fixed size. ``compiled`` is there for whichever instance comes first; a
    lock guards it.
    """

    def __init__(self, compiler: Compiler, compiled: Any, ports: Ports, *, threads: int, varies: bool) -> None:
        self._compiler = compiler
        self._threads = threads
        self._spare = [compiled]
        self._taking = threading.Lock()
        self._ports = ports
        self.specializes_on_shape = varies

    def can_have(self, instances: int, threads: int) -> bool:  # noqa: ARG002 - any number
        """Each session compiles for itself, for the threads that the model was loaded for."""
        return threads == self._threads

    def open(self, instance: Instance) -> Session:  # noqa: ARG002 - device and threads are the compiler's settings
        """Open a session with a compiled model of its own."""
        with self._taking:
            compiled = self._spare.pop() if self._spare else None
        return OpenVinoSession(self._compiler, compiled or self._compiler.compile(), self._ports)

    def close(self) -> None:
        """Let go of the model, whoever still holds this one."""
        self._spare.clear()
        del self._compiler


class OpenVinoSession(TensorSession):
    """Runs the model, on OpenVINO's threads, while its own waits without the GIL.

    For shapes that it meets for the first time OpenVINO builds kernels, which the session states as compiled. After a
    run that failed the model is compiled anew: of what OpenVINO has laid out for that run, it would use parts for the
    next one, which then fails, or answers wrong.
    """

    def __init__(self, compiler: Compiler, compiled: Any, ports: Ports) -> None:
        self._compiler = compiler
        self._request = compiled.create_infer_request()
        self._ports = ports
        self._dtypes = {spec.name: spec.datatype.numpy for spec in ports.signature.outputs}
        self._seen: set[tuple[tuple[int, ...], ...]] = set()
        self._lent: list[Any] = []
        self._spoilt = False

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch. Inputs are read where they are; outputs lie in the request, until the next call."""
        if self._spoilt:
            self._renew()
        shapes = tuple(array.shape for array in inputs.values())
        if shapes in self._seen:
            return self._infer(inputs)
        started_s = time.monotonic()
        outputs = self._infer(inputs)
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(shapes)
        report_compilation(Compilation(CompilationKind.GRAPH, list_shapes(inputs), time.monotonic() - started_s))
        return outputs

    def close(self) -> None:
        """Let go of the compiled model, whoever still holds the session."""
        del self._request, self._compiler
        self._lent.clear()

    def _infer(self, inputs: Tensors) -> Tensors:
        for name, array in inputs.items():
            if array.dtype in _NARROWED:
                _check_range(name, array)
        try:
            # Kept, for the request refers to them until it is given others.
            self._lent = [self._lend(name, array) for name, array in inputs.items()]
            self._run()
        except Exception as exc:
            raise ExecutionFailed(f"openvino: {reason_of(exc)}") from exc
        return {name: self._output(name, place) for name, place in self._ports.outputs.items()}

    def _lend(self, name: str, array: Array) -> Any:
        tensor = _to_tensor(array)
        self._request.set_input_tensor(self._ports.inputs[name], tensor)
        return array, tensor

    def _run(self) -> None:
        """Run what was lent. Not by ``infer``, which with one thread swallows errors: the last answer stays."""
        try:
            self._request.start_async()
            self._request.wait()
        except Exception:
            self._spoilt = True
            raise

    def _output(self, name: str, place: int) -> Array:
        """An output, of the datatype that is declared: numpy's names differ from OpenVINO's for bool and bf16."""
        array: Array = self._request.get_output_tensor(place).data
        return array if array.dtype == self._dtypes[name] else array.view(self._dtypes[name])

    def _renew(self) -> None:
        """Compile the model anew, which is stated."""
        started_s = time.monotonic()
        self._request = self._compiler.compile().create_infer_request()
        self._spoilt = False
        self._seen.clear()
        seconds = time.monotonic() - started_s
        _log.warning("%s: compiled anew after a run that failed, in %.2f s", self._compiler.path, seconds)
        report_compilation(Compilation(CompilationKind.SESSION, "anew, after a run that failed", seconds))


def _to_tensor(array: Array) -> Any:
    """``array``'s own memory as a tensor: OpenVINO does not write to its inputs, but takes writable arrays only."""
    if array.dtype == _BF16:
        return ov.Tensor(marked_writable(array.view(np.float16)), ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(marked_writable(array), shared_memory=True)


def _check_range(name: str, array: Array) -> None:
    if array.size and (array.min() < _LEAST or array.max() > _MOST):
        raise InvalidRequest(
            f"input {name!r}: has values beyond 32 bits ({_LEAST} to {_MOST}), in which OpenVINO computes on a CPU"
        )
