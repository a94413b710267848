"""Making an ``InferenceSession``, as configured, and making sure that it is what was asked for."""

from pathlib import Path
from typing import Any

from preheat.backend import ModelSource
from preheat.errors import BackendMissing, InvalidArtifact
from preheat_backends.onnxruntime.library import first_line, ort
from preheat_backends.onnxruntime.options import ExecutionProvider, GraphOptimizationLevel, Parameters
from preheat_backends.onnxruntime.placement import RECORD_PLACEMENT, can_tell, check_placement, check_started
from preheat_backends.onnxruntime.providers import Providers

_LOG_ERRORS = 3
_LEVELS = {
    GraphOptimizationLevel.DISABLED: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    GraphOptimizationLevel.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    GraphOptimizationLevel.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    GraphOptimizationLevel.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def build_session(path: Path, source: ModelSource, parameters: Parameters, providers: Providers) -> Any:
    """Build the session from the file by its path, so that weights kept in files beside it are found.

    Raises BackendMissing or InvalidConfig rather than run elsewhere than asked, which is what ONNX Runtime would do.
    """
    on_gpu = parameters.provider(source) is not ExecutionProvider.CPU
    if on_gpu and not can_tell():
        raise BackendMissing(f"onnxruntime {ort.__version__} does not tell where nodes run: install 1.24 or newer")
    options = _make_options(source, parameters)
    try:
        session = ort.InferenceSession(path, options, providers=list(providers), enable_fallback=0)
    except Exception as exc:
        raise InvalidArtifact(f"{path}: onnxruntime cannot load it: {first_line(exc)}") from exc
    check_started(session, source, parameters)
    if on_gpu:
        check_placement(session, source, parameters)
    return session


def _make_options(source: ModelSource, parameters: Parameters) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = parameters.intra_op_threads or source.threads
    options.graph_optimization_level = _LEVELS[parameters.graph_optimization_level]
    options.enable_cpu_mem_arena = parameters.cpu_mem_arena
    entries = {
        # Threads that spin while they wait take the processor from other models' instances.
        "session.intra_op.allow_spinning": parameters.allow_spinning,
        # Without VNNI, sums of products of 8 bits saturate at 16 and answers go wrong, unless kernels are asked not to.
        "session.x64quantprecision": not parameters.saturating_int8,
        RECORD_PLACEMENT: parameters.provider(source) is not ExecutionProvider.CPU,
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, "1" if value else "0")
    return options
