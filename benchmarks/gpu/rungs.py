"""The rungs of the ladder: from plain fp32 up, what a network is computed in and by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from preheat_backends.hardware import Arithmetic, Device, supports


@dataclass(frozen=True, slots=True)
class Rung:
    """A way to run a network.

    ``compiled``: by torch.compile, in ``mode`` if it is on a GPU, with ``inductor``'s options on top. ``packaged``: by
    AOTInductor. ``quantization`` is a name of the backend torchao's; empty: none. ``needs_gpu``: elsewhere it would be
    the same as another rung.
    """

    name: str
    about: str
    arithmetic: Arithmetic
    needs_gpu: bool = False
    bf16: bool = True
    compiled: bool = False
    packaged: bool = False
    mode: str = "default"
    quantization: str = ""
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tf32(self) -> bool:
        """Whether products of fp32 may be computed with 10 bits of mantissa."""
        return self.arithmetic is Arithmetic.TF32


_FUSED = {"force_fuse_int_mm_with_mul": True}
_TUNED = {
    **_FUSED,
    "epilogue_fusion": False,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
}
_MAX = "max-autotune"

RUNGS = (
    Rung("fp32", "fp32, eager, TF32 off", Arithmetic.FP32, bf16=False),
    Rung("tf32", "fp32, eager, TF32 on", Arithmetic.TF32, needs_gpu=True, bf16=False),
    Rung("bf16", "bf16, eager", Arithmetic.BF16),
    Rung("compiled", "bf16, torch.compile", Arithmetic.BF16, compiled=True),
    Rung(
        "reduce-overhead", "bf16, torch.compile, mode reduce-overhead", Arithmetic.BF16, needs_gpu=True, compiled=True,
        mode="reduce-overhead",
    ),
    Rung(_MAX, "bf16, torch.compile, mode max-autotune", Arithmetic.BF16, needs_gpu=True, compiled=True, mode=_MAX),
    Rung("aot-inductor", "bf16, AOTInductor package", Arithmetic.BF16, packaged=True),
    Rung(
        "int8", "int8 dynamic, torch.compile, mode max-autotune", Arithmetic.INT8, compiled=True, mode=_MAX,
        quantization="int8_dynamic",
    ),
    Rung(
        "int8-fused", "the same, with force_fuse_int_mm_with_mul", Arithmetic.INT8, needs_gpu=True, compiled=True,
        mode=_MAX, quantization="int8_dynamic", inductor=_FUSED,
    ),
    Rung(
        "int8-tuned", "the same, with coordinate descent in all directions and no epilogue fusion", Arithmetic.INT8,
        needs_gpu=True, compiled=True, mode=_MAX, quantization="int8_dynamic", inductor=_TUNED,
    ),
    Rung(
        "fp8", "fp8 dynamic by row, torch.compile, mode max-autotune", Arithmetic.FP8, needs_gpu=True, compiled=True,
        mode=_MAX, quantization="fp8_dynamic",
    ),
)  # fmt: skip
BY_NAME = {rung.name: rung for rung in RUNGS}


def objection(rung: Rung, device: Device) -> str | None:
    """Why ``rung`` is not run on ``device``; None if it is."""
    if rung.needs_gpu and device.capability is None:
        return "not run: needs a GPU"
    for arithmetic in (rung.arithmetic, Arithmetic.BF16 if rung.bf16 else Arithmetic.FP32):
        if not supports(device, arithmetic):
            return f"refused: {device} does not compute in {arithmetic.value}"
    return None
