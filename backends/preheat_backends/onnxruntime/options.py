"""What a configuration can ask of ONNX Runtime, and which of it goes together."""

import enum
from dataclasses import dataclass

from preheat.backend import ModelSource


class ExecutionProvider(enum.Enum):
    """Whose kernels compute."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class GraphOptimizationLevel(enum.Enum):
    """How much of the graph is rewritten at load, in the order of effort."""

    DISABLED = "disabled"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is None is left to its default: the provider to the instance's device, threads to ``preheat.threads``.

    ``saturating_int8`` lets sums of 8-bit products saturate at 16 bits on CPUs without VNNI, which may be faster
    there, and wrong. ``allow_cpu_nodes``: nodes that the GPU's providers have no kernel for may run on the CPU.
    """

    execution_provider: ExecutionProvider | None = None
    intra_op_threads: int | None = None
    graph_optimization_level: GraphOptimizationLevel = GraphOptimizationLevel.ALL
    allow_spinning: bool = False
    cpu_mem_arena: bool = True
    saturating_int8: bool = False
    allow_cpu_nodes: bool = False
    tf32: bool = False
    device_memory_limit_mib: int | None = None
    tensorrt_fp16: bool = False
    tensorrt_bf16: bool = False
    tensorrt_int8: bool = False
    tensorrt_layer_norm_fp32: bool = False
    tensorrt_workspace_mib: int | None = None
    tensorrt_optimization_level: int | None = None

    def provider(self, source: ModelSource) -> ExecutionProvider:
        """The one asked for, or the one of the instance's device."""
        if self.execution_provider is not None:
            return self.execution_provider
        return ExecutionProvider.CPU if source.device == "cpu" else ExecutionProvider.CUDA


_CPU, _CUDA, _TENSORRT = ExecutionProvider
# Parameters that other providers than these have no use for.
_ONLY_FOR = {
    "saturating_int8": (_CPU,),
    "allow_cpu_nodes": (_CUDA, _TENSORRT),
    "tf32": (_CUDA,),
    "device_memory_limit_mib": (_CUDA, _TENSORRT),
}
_AT_LEAST_1 = ("intra_op_threads", "device_memory_limit_mib", "tensorrt_workspace_mib")
_MOST_EFFORT = 5


def parse_options(source: ModelSource) -> Parameters:
    """The parameters of ``source``. Raises InvalidConfig for values that cannot be, also beside each other."""
    parameters = source.parse_parameters(Parameters)
    for name in _AT_LEAST_1:
        value: int | None = getattr(parameters, name)
        if value is not None and value < 1:
            raise source.refuse(name, value, "must be at least 1")
    level = parameters.tensorrt_optimization_level
    if level is not None and not 0 <= level <= _MOST_EFFORT:
        raise source.refuse("tensorrt_optimization_level", level, f"must be from 0 to {_MOST_EFFORT}")
    _check_together(source, parameters)
    return parameters


def _check_together(source: ModelSource, parameters: Parameters) -> None:
    """Refuse what is set but would mean nothing."""
    provider = parameters.provider(source)
    for name, text in source.parameters.items():
        allowed = (_TENSORRT,) if name.startswith("tensorrt_") else _ONLY_FOR.get(name)
        if allowed is not None and provider not in allowed:
            wanted = " or ".join(each.value for each in allowed)
            raise source.refuse(name, text, f"goes with execution_provider: {wanted}; here it is {provider.value}")
    if parameters.tensorrt_fp16 and parameters.tensorrt_bf16:
        raise source.refuse("tensorrt_bf16", "true", "cannot be beside tensorrt_fp16: true; choose one")
