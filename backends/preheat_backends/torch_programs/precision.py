"""A network that computes in another floating-point type than its callers speak."""

import enum
from collections.abc import Mapping

import torch

from preheat.backend import Signature
from preheat_backends.hardware import Arithmetic
from preheat_backends.torch_programs.program import NetworkProgram, Wrapped
from preheat_backends.torch_tensors import DTYPES


class Precision(enum.Enum):
    """The floating-point types that a network can be asked to compute in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """As torch calls it."""
        return _DTYPES[self]

    @property
    def arithmetic(self) -> Arithmetic:
        """What a device has to be able to do."""
        return Arithmetic[self.name]


_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}


class CastProgram(Wrapped):
    """A program whose weights are ``dtype``: floating-point inputs are cast to it, and outputs to the signature's."""

    def __init__(self, inner: NetworkProgram, dtype: torch.dtype, signature: Signature) -> None:
        super().__init__(inner)
        self._dtype = dtype
        declared = {spec.name: DTYPES[spec.datatype] for spec in signature.outputs}
        self._casts = {name: dtype for name, dtype in declared.items() if dtype.is_floating_point}

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Cast the inputs and run."""
        return super().call(self._cast(inputs))

    def call_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """The same, with nothing compiled."""
        return super().call_eagerly(self._cast(inputs))

    def pick(self, result: object) -> Mapping[str, torch.Tensor]:
        """The outputs, floating-point ones cast back."""
        outputs = super().pick(result)
        floating = [name for name, tensor in outputs.items() if tensor.is_floating_point()]
        return {**outputs, **{name: outputs[name].to(self._casts[name]) for name in floating if name in self._casts}}

    def _cast(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {
            name: tensor.to(self._dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
        }
