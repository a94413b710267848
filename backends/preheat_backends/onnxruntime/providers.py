"""Which execution providers a session is given, with what settings, and whether they are there.

ONNX Runtime itself warns and runs on the CPU where a provider does not start. Here that is an error.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from preheat.backend import ModelSource, Signature
from preheat.errors import BackendMissing
from preheat_backends.hardware import Arithmetic, require
from preheat_backends.onnxruntime import tensorrt
from preheat_backends.onnxruntime.library import ort
from preheat_backends.onnxruntime.options import ExecutionProvider, Parameters

Providers: TypeAlias = Sequence[tuple[str, Mapping[str, str]]]

# As ONNX Runtime calls them.
NAMES = {
    ExecutionProvider.CPU: "CPUExecutionProvider",
    ExecutionProvider.CUDA: "CUDAExecutionProvider",
    ExecutionProvider.TENSORRT: "TensorrtExecutionProvider",
}
_MIB = 2**20


def has(provider: ExecutionProvider) -> bool:
    """Whether this build of ONNX Runtime knows ``provider``."""
    return NAMES[provider] in ort.get_available_providers()


def check_provider(source: ModelSource, parameters: Parameters) -> None:
    """Raise BackendMissing for a provider that is not in this build, InvalidConfig for one of another device."""
    provider = parameters.provider(source)
    on_gpu = source.device != "cpu"
    if provider is ExecutionProvider.CPU:
        if on_gpu:
            raise source.refuse("execution_provider", "cpu", f"the instance is on {source.device}: {_set_kind('CPU')}")
        return
    if not has(provider):
        raise BackendMissing(f"{_who_asks(source, parameters)}, but {_what_is_missing()}")
    if not on_gpu:
        raise source.refuse("execution_provider", provider.value, f"the instance is on the CPU: {_set_kind('GPU')}")


def choose_providers(
    source: ModelSource, parameters: Parameters, signature: Signature, *, quantized: bool
) -> Providers:
    """The providers in the order in which they take nodes. ONNX Runtime adds its CPU provider itself.

    ``quantized``: the graph has QuantizeLinear nodes. Raises BackendMissing or InvalidConfig.
    """
    check_provider(source, parameters)
    provider = parameters.provider(source)
    if provider is ExecutionProvider.CPU:
        return [(NAMES[provider], {})]
    ort.preload_dlls()
    cuda = (NAMES[ExecutionProvider.CUDA], _cuda_settings(source, parameters))
    if provider is ExecutionProvider.CUDA:
        return [cuda]
    settings = tensorrt.make_settings(source, parameters, signature, quantized=quantized)
    return [(NAMES[provider], settings), cuda]


def device_index(source: ModelSource) -> int:
    """The number of a CUDA device among those that the driver shows."""
    return int(source.device.partition(":")[2] or 0)


def _cuda_settings(source: ModelSource, parameters: Parameters) -> dict[str, str]:
    settings = {
        "device_id": str(device_index(source)),
        # Not EXHAUSTIVE, which is ONNX Runtime's default: that tries every algorithm at each new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Its default is 1: FP32 would be less than that, and answers others than on the CPU.
        "use_tf32": "0",
    }
    if parameters.tf32:
        require(source, Arithmetic.TF32, "tf32", "true")
        settings["use_tf32"] = "1"
    if parameters.device_memory_limit_mib is not None:
        settings["gpu_mem_limit"] = str(parameters.device_memory_limit_mib * _MIB)
    return settings


def _who_asks(source: ModelSource, parameters: Parameters) -> str:
    if parameters.execution_provider is None:
        return f"{source.name} asks for {source.device}"
    return (
        f"{source.config_path}: parameters: execution_provider: {parameters.execution_provider.value!r}: "
        f"{source.name} asks for it on {source.device}"
    )


def _what_is_missing() -> str:
    if not has(ExecutionProvider.CUDA):
        return (
            "this onnxruntime is built for the CPU only: "
            "pip uninstall onnxruntime, then pip install 'preheat[onnxruntime-gpu]'"
        )
    return f"this build of onnxruntime has {', '.join(ort.get_available_providers())} only"


def _set_kind(kind: str) -> str:
    return f"set instance_group {{ kind: KIND_{kind} }}, or leave execution_provider out"
