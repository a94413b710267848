"""A signature as torch.export takes it: which axes vary and how far, and sizes to trace with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.export import Dim

from preheat.backend import Buckets, Dimension, Signature, TensorSpec
from preheat_backends.torch_tensors import DTYPES

# A name that no axis of a configuration can have.
_BATCH = Dimension("batch axis", 1)


def whole_shape(spec: TensorSpec, signature: Signature) -> tuple[Dimension, ...]:
    """The axes of a tensor, the batch axis among them."""
    batch = (replace(_BATCH, maximum=signature.max_batch_size),) if signature.batches else ()
    return (*batch, *spec.shape)


def axis_name(axis: Dimension, index: int, spec: TensorSpec) -> str:
    """The name of an axis that varies, made up for one that is tied to no other."""
    return axis.name or f"{spec.name} {index}"


def varying_axes(signature: Signature) -> Mapping[str, Dimension]:
    """The axes of inputs that vary, by their names."""
    return {
        axis_name(axis, index, spec): axis
        for spec in signature.inputs
        for index, axis in enumerate(whole_shape(spec, signature))
        if _varies(axis)
    }


def dynamic_shapes(signature: Signature) -> dict[str, dict[int, Any]]:
    """For each input, torch's symbols of its axes that vary; axes of one name have one."""
    symbols = {
        name: _symbol(axis, f"axis_{number}") for number, (name, axis) in enumerate(varying_axes(signature).items())
    }
    return {
        spec.name: {
            index: symbols[axis_name(axis, index, spec)]
            for index, axis in enumerate(whole_shape(spec, signature))
            if _varies(axis)
        }
        for spec in signature.inputs
    }


def example_sizes(signature: Signature, buckets: Buckets | None = None) -> Mapping[str, int]:
    """Sizes to trace with, of each axis that varies: the largest of its bucket, if it has one.

    Others are not 1, which torch would take for the only one, and no two the same if it can be.
    """
    largest = {} if buckets is None else {name: max(sizes) for name, sizes in buckets.sizes.items()}
    return {
        name: _fit(axis, largest.get(name, 3 + number))
        for number, (name, axis) in enumerate(varying_axes(signature).items())
    }


def sized(spec: TensorSpec, signature: Signature, sizes: Mapping[str, int]) -> list[int]:
    """The shape of an input whose axes that vary have ``sizes``, by their names."""
    return [
        sizes[axis_name(axis, index, spec)] if _varies(axis) else 1 if axis.size is None else axis.size
        for index, axis in enumerate(whole_shape(spec, signature))
    ]


def example_inputs(signature: Signature, buckets: Buckets) -> dict[str, torch.Tensor]:
    """Zeros of :func:`example_sizes`, by the names of inputs."""
    sizes = example_sizes(signature, buckets)
    return {
        spec.name: torch.zeros(sized(spec, signature, sizes), dtype=DTYPES[spec.datatype]) for spec in signature.inputs
    }


def _varies(axis: Dimension) -> bool:
    """Not of an axis that may be 0 or 1, which is taken to be 1: torch has no symbol that small."""
    return axis.size is None and axis.maximum != 1


def _symbol(axis: Dimension, name: str) -> Any:
    step = axis.multiple_of
    symbol = Dim(
        name,
        min=max(1, -(-axis.minimum // step)),
        max=None if axis.maximum is None else axis.maximum // step,
    )
    return symbol if step == 1 else step * symbol


def _fit(axis: Dimension, wanted: int) -> int:
    size = -(-max(axis.minimum, wanted) // axis.multiple_of) * axis.multiple_of
    return size if axis.maximum is None else min(size, axis.maximum // axis.multiple_of * axis.multiple_of)
