"""The plugin.

One ``InferenceSession`` serves all instances of a model: it is safe to call from several threads, and holds the
weights once. Its threads are shared likewise: a run computes on the caller's thread and on those.
"""

import dataclasses
from typing import Any

from preheat.backend import Backend, Hardware, Instance, Model, ModelSource, PartialConfig, Session, Signature
from preheat.tensors import DataType
from preheat_backends.artifacts import Kind, Takes, find_artifact
from preheat_backends.hardware import find_device, find_gpus
from preheat_backends.onnx_signature import read_operators, read_signature, rows_depend
from preheat_backends.onnxruntime import tensorrt
from preheat_backends.onnxruntime.building import build_session
from preheat_backends.onnxruntime.device_session import DeviceSession, Place, find_torch
from preheat_backends.onnxruntime.library import ort
from preheat_backends.onnxruntime.options import ExecutionProvider, Parameters, parse_options
from preheat_backends.onnxruntime.providers import (
    check_provider,
    choose_providers,
    device_index,
    has,
)
from preheat_backends.onnxruntime.sessions import HostSession, run_arrays, run_values

_TAKES = Takes(
    backend="onnxruntime",
    names=("model.onnx",),
    kinds=frozenset({Kind.ONNX}),
    description="an ONNX model (.onnx)",
)
# cuDNN prepares these for each shape that it meets.
_PREPARED_BY_SHAPE = frozenset({"Conv", "ConvTranspose", "FusedConv"})


class OnnxRuntimeBackend(Backend):
    """Runs ONNX models."""

    def hardware(self) -> Hardware:
        """ONNX Runtime, on the host and, if it is built for CUDA, on the devices that the driver shows."""
        gpus = find_gpus() if has(ExecutionProvider.CUDA) else ()
        devices = ("cpu", *(gpu.name for gpu in gpus))
        return Hardware(library=f"onnxruntime {ort.__version__}", devices=devices)

    def environment(self, source: ModelSource) -> str | None:
        """What TensorRT's engines depend on; nothing else is worth keeping."""
        if parse_options(source).execution_provider is not ExecutionProvider.TENSORRT:
            return None
        device = find_device(source.device)
        return (
            f"onnxruntime {ort.__version__}; tensorrt {tensorrt.library_version()}; "
            f"gpu {device.model} {device.capability}"
        )

    def complete(self, source: ModelSource) -> PartialConfig:
        """The graph's inputs and outputs, as far as the file gives their shapes, and whether rows depend on others."""
        check_provider(source, parse_options(source))
        path = find_artifact(source, _TAKES).path
        return dataclasses.replace(read_signature(path).partial_config(), row_independent=not rows_depend(path))

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Build the session. Of the graph's outputs, all of which are computed, those of ``signature`` are fetched."""
        parameters = parse_options(source)
        check_provider(source, parameters)
        path = find_artifact(source, _TAKES).path
        actual = read_signature(path)
        actual.check_inputs(source, signature)
        actual.match_outputs(source, signature, by_position=False)
        operators = read_operators(path)
        providers = choose_providers(source, parameters, signature, quantized="QuantizeLinear" in operators)
        session = build_session(path, source, parameters, providers)
        return OnnxRuntimeModel(session, signature, source, parameters, by_shape=bool(operators & _PREPARED_BY_SHAPE))


class OnnxRuntimeModel(Model):
    """An inference session and the outputs that are asked of it."""

    def __init__(
        self, session: Any, signature: Signature, source: ModelSource, parameters: Parameters, *, by_shape: bool
    ) -> None:
        """``by_shape``: the graph has nodes that CUDA's libraries prepare for each shape."""
        self._session = session
        self._threads = source.threads
        self._signature = signature
        self._place = None if source.device == "cpu" else Place("cuda", device_index(source))
        self.specializes_on_shape = by_shape and parameters.provider(source) is ExecutionProvider.CUDA

    def can_have(self, instances: int, threads: int) -> bool:  # noqa: ARG002 - any number shares the session
        """The shared session has its threads for good."""
        return threads == self._threads

    def open(self, instance: Instance) -> Session:  # noqa: ARG002 - device and threads are the shared session's
        """Open a session, which is no more than a way in."""
        outputs = self._signature.outputs
        datatypes = {spec.datatype for spec in (*self._signature.inputs, *outputs)}
        # Text is on the host whatever computes the rest.
        if self._place is not None and DataType.BYTES not in datatypes:
            return DeviceSession(self._session, outputs, self._place, find_torch())
        run = run_values if DataType.BF16 in datatypes else run_arrays
        return HostSession(self._session, tuple(spec.name for spec in outputs), run)

    def close(self) -> None:
        """Let go of the inference session, whoever still holds the model."""
        del self._session
