"""The backend for ONNX Runtime, on the CPU or on a CUDA device.

One ``InferenceSession`` serves all instances of a model: it is safe to call from several threads, and holds the
weights once. Its threads are shared likewise: a run computes on the caller's thread and on those.
"""

import ctypes
import enum
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

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
from preheat.errors import BackendMissing, ExecutionFailed, InvalidArtifact, InvalidRequest
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.artifacts import Artifact, Kind, Takes, find_artifact
from preheat_backends.onnx_signature import read_signature

# The official Linux builds report to their maker over HTTPS unless this is set before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

_TAKES = Takes(
    backend="onnxruntime",
    names=("model.onnx",),
    kinds=frozenset({Kind.ONNX}),
    description="an ONNX model (.onnx)",
)
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_LOG_ERRORS, _LOG_FATAL = 3, 4
_ONNX_BFLOAT16 = 16
_BF16 = DataType.BF16.numpy


class GraphOptimizationLevel(enum.Enum):
    """How much of the graph is rewritten at load, in the order of effort."""

    DISABLED = "disabled"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


_LEVELS = {
    GraphOptimizationLevel.DISABLED: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    GraphOptimizationLevel.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    GraphOptimizationLevel.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    GraphOptimizationLevel.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """``intra_op_threads`` is what one run may use; None means the model's threads per instance."""

    intra_op_threads: int | None = None
    graph_optimization_level: GraphOptimizationLevel = GraphOptimizationLevel.ALL


class OnnxRuntimeBackend(Backend):
    """Runs ONNX models."""

    def hardware(self) -> Hardware:
        """ONNX Runtime, on the host and, if it is built for CUDA, on the devices that the driver shows."""
        count = _count_cuda_devices() if _CUDA in ort.get_available_providers() else 0
        devices = ("cpu", *(f"cuda:{index}" for index in range(count)))
        return Hardware(library=f"onnxruntime {ort.__version__}", devices=devices)

    def complete(self, source: ModelSource) -> PartialConfig:
        """The graph's inputs and outputs, as far as the file gives their shapes."""
        _parse(source)
        return read_signature(find_artifact(source, _TAKES).path).partial_config()

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Build the session. Of the graph's outputs, all of which are computed, those of ``signature`` are fetched."""
        parameters = _parse(source)
        artifact = find_artifact(source, _TAKES)
        actual = read_signature(artifact.path)
        actual.check_inputs(source, signature)
        actual.match_outputs(source, signature, by_position=False)
        return OnnxRuntimeModel(_build_session(artifact, source=source, parameters=parameters), signature)


class OnnxRuntimeModel(Model):
    """An inference session and the outputs that are asked of it."""

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self._session = session
        self._signature = signature

    def open(self, instance: Instance) -> Session:  # noqa: ARG002 - device and threads are the shared session's
        """Open a session, which is no more than a way in."""
        tensors = (*self._signature.inputs, *self._signature.outputs)
        run = _run_values if any(spec.datatype is DataType.BF16 for spec in tensors) else _run_arrays
        return OnnxRuntimeSession(self._session, tuple(spec.name for spec in self._signature.outputs), run)

    def close(self) -> None:
        """Let go of the inference session, whoever still holds the model."""
        del self._session


class OnnxRuntimeSession(TensorSession):
    """Runs the graph, on whichever thread asks: ONNX Runtime keeps nothing by thread."""

    any_thread = True

    def __init__(self, session: ort.InferenceSession, outputs: tuple[str, ...], run: "_Run") -> None:
        self._session = session
        self._outputs = outputs
        self._run = run
        self._options = ort.RunOptions()
        # A failed run raises; it need not also print.
        self._options.log_severity_level = _LOG_FATAL

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch. Inputs are read where they are, outputs are new."""
        feed = {name: _decode(name, array) if array.dtype.kind == "O" else array for name, array in inputs.items()}
        try:
            values = self._run(self._session, self._outputs, feed, self._options)
        except Exception as exc:
            raise ExecutionFailed(f"onnxruntime: {_first_line(exc)}") from exc
        return {
            name: _encode(array) if array.dtype.kind == "O" else array
            for name, array in zip(self._outputs, values, strict=True)
        }

    def close(self) -> None:
        """Let go of the inference session, whoever still holds this one."""
        del self._session


_Run: TypeAlias = Callable[[ort.InferenceSession, tuple[str, ...], Mapping[str, Array], ort.RunOptions], list[Array]]


def _run_arrays(
    session: ort.InferenceSession, outputs: tuple[str, ...], feed: Mapping[str, Array], options: ort.RunOptions
) -> list[Array]:
    arrays: list[Array] = session.run(outputs, feed, options)
    return arrays


def _run_values(
    session: ort.InferenceSession, outputs: tuple[str, ...], feed: Mapping[str, Array], options: ort.RunOptions
) -> list[Array]:
    """As ``_run_arrays``, for graphs with BF16 tensors, which only ONNX Runtime's own values can hold."""
    values = {name: _to_value(array) for name, array in feed.items()}
    return [_to_array(value) for value in session.run_with_ort_values(outputs, values, options)]


def _to_value(array: Array) -> ort.OrtValue:
    if array.dtype == _BF16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _to_array(value: ort.OrtValue) -> Array:
    """``value`` as an array: of BF16 a copy of its memory, for which ONNX Runtime knows no numpy type."""
    if value.element_type() != _ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    bits = np.empty(value.shape(), np.uint16)
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(_BF16)


def _decode(name: str, strings: Array) -> Array:
    """ONNX's strings, which are text, from the protocol's, which are bytes."""
    try:
        return np.array([string.decode() for string in strings.flat], np.object_).reshape(strings.shape)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"input {name!r}: {exc.object[:40]!r} is not UTF-8, as ONNX strings are") from exc


def _encode(strings: Array) -> Array:
    return np.array([string.encode() for string in strings.flat], np.object_).reshape(strings.shape)


def _parse(source: ModelSource) -> Parameters:
    parameters = source.parse_parameters(Parameters)
    if parameters.intra_op_threads is not None and parameters.intra_op_threads < 1:
        raise source.refuse("intra_op_threads", parameters.intra_op_threads, "must be at least 1")
    return parameters


def _build_session(artifact: Artifact, *, source: ModelSource, parameters: Parameters) -> ort.InferenceSession:
    """Build the session from the file by its path, so that weights kept in files beside it are found.

    Raises BackendMissing rather than run elsewhere than asked, which is what ONNX Runtime would do.
    """
    provider, settings = _provider(source)
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = parameters.intra_op_threads or source.threads
    options.graph_optimization_level = _LEVELS[parameters.graph_optimization_level]
    # Threads that spin while they wait take the processor from other models' instances.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(artifact.path, options, providers=[(provider, settings)], enable_fallback=0)
    except Exception as exc:
        raise InvalidArtifact(f"{artifact.path}: onnxruntime cannot load it: {_first_line(exc)}") from exc
    if session.get_providers()[0] != provider:
        raise BackendMissing(
            f"{source.name} asks for {source.device}, but onnxruntime could not start its {provider}: "
            "its log says why, which is most often a CUDA or cuDNN library that is missing or of another version"
        )
    return session


def _provider(source: ModelSource) -> tuple[str, dict[str, Any]]:
    """The execution provider for the device, and its settings."""
    kind, _, index = source.device.partition(":")
    if kind == "cpu":
        return _CPU, {}
    if _CUDA not in ort.get_available_providers():
        raise BackendMissing(
            f"{source.name} asks for {source.device}, but this onnxruntime is built for the CPU only: "
            "pip uninstall onnxruntime, then pip install 'preheat[onnxruntime-gpu]'"
        )
    ort.preload_dlls()
    return _CUDA, {"device_id": int(index or 0)}


def _count_cuda_devices() -> int:
    """How many devices the CUDA driver shows: ONNX Runtime does not tell, and torch need not be here."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    succeeded = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if succeeded else 0


def _first_line(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without the status that it puts before it."""
    text = str(error).strip().partition("\n")[0]
    return text.rpartition("[ONNXRuntimeError] : ")[2].split(" : ", 2)[-1]
