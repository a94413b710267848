"""What others published of the same networks. Nothing in here was measured by this project."""

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = (
    "the tutorial [GPU Quantization with TorchAO]"
    "(https://docs.pytorch.org/tutorials/unstable/gpu_quantization_torchao_tutorial.html)"
)
HARDWARE = "an A100 limited to 330 W, CUDA 12.1"
BATCH = 16


@dataclass(frozen=True, slots=True)
class Figure:
    """A published figure: milliseconds, and gigabytes at the peak."""

    ms: float
    peak_gb: float


# By network and rung, all at BATCH. The tutorial's weights are those of Segment Anything; ours are random.
FIGURES: Mapping[str, Mapping[str, Figure]] = {
    "block": {
        "fp32": Figure(186.16, 6.33),
        "bf16": Figure(25.43, 3.17),
        "max-autotune": Figure(19.95, 2.24),
        "int8": Figure(19.04, 3.58),
        "int8-fused": Figure(18.78, 2.37),
        "int8-tuned": Figure(18.16, 2.39),
    },
    "encoder": {
        # Compiled with the options of int8-tuned, which the tutorial still has set then.
        "max-autotune": Figure(729.65, 23.96),
        "int8-tuned": Figure(677.28, 24.93),
    },
}
