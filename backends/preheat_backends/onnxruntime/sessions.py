"""Instances of a model on the host: arrays in, arrays out, on whichever thread asks."""

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from preheat.backend import TensorSession
from preheat.errors import ExecutionFailed, InvalidRequest
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.onnxruntime.library import first_line, ort

_LOG_FATAL = 4
ONNX_BFLOAT16 = 16
BF16 = DataType.BF16.numpy


class HostSession(TensorSession):
    """Runs the graph, on whichever thread asks: ONNX Runtime keeps nothing by thread."""

    any_thread = True

    def __init__(self, session: Any, outputs: tuple[str, ...], run: "Run") -> None:
        self._session = session
        self._outputs = outputs
        self._run = run
        self._options = make_run_options()

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch. Inputs are read where they are, outputs are new."""
        feed = {name: _decode(name, array) if array.dtype.kind == "O" else array for name, array in inputs.items()}
        try:
            values = self._run(self._session, self._outputs, feed, self._options)
        except Exception as exc:
            raise ExecutionFailed(f"onnxruntime: {first_line(exc)}") from exc
        return {
            name: _encode(array) if array.dtype.kind == "O" else array
            for name, array in zip(self._outputs, values, strict=True)
        }

    def close(self) -> None:
        """Let go of the inference session, whoever still holds this one."""
        del self._session


Run: TypeAlias = Callable[[Any, tuple[str, ...], Mapping[str, Array], Any], list[Array]]


def make_run_options() -> Any:
    """How each run is done."""
    options = ort.RunOptions()
    # A failed run raises; it need not also print.
    options.log_severity_level = _LOG_FATAL
    return options


def run_arrays(session: Any, outputs: tuple[str, ...], feed: Mapping[str, Array], options: Any) -> list[Array]:
    """Run the inference session, which fetches ``outputs``."""
    arrays: list[Array] = session.run(outputs, feed, options)
    return arrays


def run_values(session: Any, outputs: tuple[str, ...], feed: Mapping[str, Array], options: Any) -> list[Array]:
    """As ``run_arrays``, for graphs with BF16 tensors, which only ONNX Runtime's own values can hold."""
    values = {name: _to_value(array) for name, array in feed.items()}
    return [to_array(value) for value in session.run_with_ort_values(outputs, values, options)]


def _to_value(array: Array) -> Any:
    if array.dtype == BF16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def to_array(value: Any) -> Array:
    """``value``, of host memory, as an array: of BF16 a copy, for which ONNX Runtime knows no numpy type."""
    if value.element_type() != ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    bits = np.empty(value.shape(), np.uint16)
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(BF16)


def _decode(name: str, strings: Array) -> Array:
    """ONNX's strings, which are text, from the protocol's, which are bytes."""
    try:
        return np.array([string.decode() for string in strings.flat], np.object_).reshape(strings.shape)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"input {name!r}: {exc.object[:40]!r} is not UTF-8, as ONNX strings are") from exc


def _encode(strings: Array) -> Array:
    return np.array([string.encode() for string in strings.flat], np.object_).reshape(strings.shape)
