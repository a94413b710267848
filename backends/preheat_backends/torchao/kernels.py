"""What the kernels of 8-bit integers do on this CPU."""

import functools

import torch

# Weights from minus this to below it have 7 bits: with them 16 bits hold the sum of two products, 2 x 255 x 64 at most.
NARROW = 64
_LARGEST_INPUT = 255
_LARGEST_WEIGHT = 127
_ROWS, _INPUTS, _OUTPUTS = 8, 64, 32


@functools.cache
def saturates() -> bool:
    """Whether oneDNN's products of 8-bit integers can be wrong here.

    Without VNNI it adds two products of a byte and a signed byte in 16 bits, which hold the largest such sum only if
    one of the factors has 7 bits. So try the largest: the CPU's flags would not tell what oneDNN makes of them.
    """
    inputs = torch.full((_ROWS, _INPUTS), _LARGEST_INPUT, dtype=torch.uint8)
    weights = torch.full((_OUTPUTS, _INPUTS), _LARGEST_WEIGHT, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weights, [_ROWS, _INPUTS])
    products = torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, 0, packed, torch.ones(_OUTPUTS), torch.zeros(_OUTPUTS, dtype=torch.int64),
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return bool((products != _LARGEST_INPUT * _LARGEST_WEIGHT * _INPUTS).any())
