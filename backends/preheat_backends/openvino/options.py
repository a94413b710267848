"""What the configuration may ask of OpenVINO, and what is asked of it in any case."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from preheat.backend import ModelSource
from preheat_backends.hardware import Arithmetic, require
from preheat_backends.openvino.library import CPU, get_core


class Precision(enum.Enum):
    """What a network may be computed in; its inputs and outputs keep their types."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def hint(self) -> str:
        """As OpenVINO calls it."""
        return _HINTS[self]


_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16"}
_ARITHMETIC = {Precision.BF16: Arithmetic.BF16, Precision.FP16: Arithmetic.FP16}


@dataclass(frozen=True, slots=True)
class Parameters:
    """All that is the configuration's to decide; instances and threads are the server's."""

    inference_precision: Precision = Precision.FP32


def parse(source: ModelSource) -> Parameters:
    """The parameters of ``source``, which is on the CPU. Raises InvalidConfig, also for what this CPU cannot do."""
    parameters = source.parse_parameters(Parameters)
    if parameters.inference_precision is not Precision.FP32:
        _check_precision(source, parameters.inference_precision)
    return parameters


def _check_precision(source: ModelSource, precision: Precision) -> None:
    known = get_core().get_property(CPU, "OPTIMIZATION_CAPABILITIES")
    if precision.name not in known:
        possible = ", ".join(each.value for each in Precision if each.name in known)
        raise source.refuse(
            "inference_precision",
            precision.value,
            f"OpenVINO has no kernels of it for this CPU, and would compute in fp32 without a word; it has {possible}",
        )
    require(source, _ARITHMETIC[precision], "inference_precision", precision.value)


def make_settings(source: ModelSource, parameters: Parameters) -> Mapping[str, object]:
    """OpenVINO's properties for what one instance of ``source`` runs.

    Left to itself OpenVINO computes in bf16 wherever the CPU can, and scales activations to 8 bits beside compressed
    weights: "accuracy" keeps it from both. Nor does it pin threads, which would take processors from other models.
    """
    return {
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": parameters.inference_precision.hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": source.threads,
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": False,
    }
