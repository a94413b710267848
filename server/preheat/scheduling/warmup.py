"""What a session runs before it is announced: every bucket, then the configured samples.

Synthetic inputs are zeros, the one value valid as token, index, mask and image alike; variable dimensions take their
smallest size. A model for which zeros are no valid input gets its own through ``model_warmup``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preheat.backend import Dimension, Signature, TensorSpec
from preheat.tensors import Array, Tensors, zeros


@dataclass(frozen=True, slots=True)
class Sample:
    """Configured warm-up input: ``inputs`` is one row (without batch axis), run ``rows`` at a time, ``count`` times."""

    name: str
    inputs: Tensors
    rows: int
    count: int


@dataclass(frozen=True, slots=True)
class WarmupBatch:
    """One execution of the warm-up: ``parts`` go through the collate path as requests of one row would."""

    label: str
    parts: Sequence[Tensors]


def default_buckets(max_batch_size: int) -> tuple[int, ...]:
    """Powers of two up to, and always including, ``max_batch_size``: 6 gives 1, 2, 4, 6. None without a batch axis."""
    if max_batch_size < 1:
        return ()
    powers = (1 << exponent for exponent in range(max_batch_size.bit_length()))
    return tuple(sorted({*powers, max_batch_size}))


def plan_warmup(signature: Signature, buckets: Sequence[int], samples: Sequence[Sample]) -> list[WarmupBatch]:
    """Every bucket with the first sample's row (or zeros), largest first, then each sample as configured.

    Largest first, so that memory is reserved once at its peak and a batch that cannot fit fails early.
    """
    row = samples[0].inputs if samples else synthetic_row(signature)
    part = _with_batch_axis(row) if signature.batches else row
    sizes = sorted(buckets, reverse=True) if signature.batches else [1]
    batches = [WarmupBatch(f"batch {size}" if signature.batches else "one request", [part] * size) for size in sizes]
    return batches + plan_samples(signature, samples)


def plan_samples(signature: Signature, samples: Sequence[Sample]) -> list[WarmupBatch]:
    """Only the configured samples: all that a session which sees requests whole may be run with."""
    return [
        WarmupBatch(f"sample '{sample.name}'", [_with_batch_axis(sample.inputs)] * sample.rows)
        if signature.batches
        else WarmupBatch(f"sample '{sample.name}'", [sample.inputs])
        for sample in samples
        for _ in range(sample.count)
    ]


def synthetic_row(signature: Signature) -> Tensors:
    """Zeros for every required input, without batch axis."""
    return {spec.name: _zeros(spec) for spec in signature.inputs if not spec.optional}


def _zeros(spec: TensorSpec) -> Array:
    return zeros(spec.datatype, tuple(_smallest(dimension) for dimension in spec.shape))


def _smallest(dimension: Dimension) -> int:
    """The smallest allowed size that is not empty."""
    least = max(1, dimension.minimum)
    return -(-least // dimension.multiple_of) * dimension.multiple_of


def _with_batch_axis(row: Tensors) -> Tensors:
    return {name: array[np.newaxis] for name, array in row.items()}
