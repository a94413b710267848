"""What a session runs before it is announced: every bucket, then the configured samples.

Synthetic inputs are zeros, the one value valid as token, index, mask and image alike. A varying dimension without
buckets takes its two smallest sizes, since compilers treat a size of 1 apart. A model for which that is no valid input
gets its own through ``model_warmup``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

import numpy as np

from preheat.backend import Buckets, Dimension, Signature, TensorSpec
from preheat.errors import InvalidConfig
from preheat.scheduling.pending import BatchKey
from preheat.tensors import Tensors, zeros

# With more optional inputs than this, only none, each one and all of them are warmed.
_ALL_COMBINATIONS = 4
_MAX_BATCHES = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """Configured warm-up input: ``inputs`` is one row (without batch axis), run ``rows`` at a time, ``count`` times."""

    name: str
    inputs: Tensors
    rows: int
    count: int


@dataclass(frozen=True, slots=True)
class WarmupBatch:
    """One execution of the warm-up: ``parts`` go through the collate path as requests of one row would.

    They are padded to the shapes of ``key``; None: to those that their own would be padded to.
    """

    label: str
    parts: Sequence[Tensors]
    key: BatchKey | None = None


def plan_warmup(signature: Signature, buckets: Buckets, samples: Sequence[Sample]) -> list[WarmupBatch]:
    """Every bucket, with the first sample's row where that fits and zeros elsewhere, then each sample as configured.

    Where a varying dimension has no buckets, the sample's size is the one that is run. Largest first, so that memory is
    reserved once at its peak and a batch that cannot fit fails early. Raises InvalidConfig if the buckets multiply
    beyond reason.
    """
    rows = sorted(buckets.rows, reverse=True) if signature.batches else [None]
    sample = samples[0].inputs if samples else {}
    sizes, inputs = _sizes(signature, buckets, sample), list(input_sets(signature.inputs))
    count = math.prod(map(len, sizes.values())) * len(inputs)
    if len(rows) * count > _MAX_BATCHES:
        raise InvalidConfig(
            f"{len(rows)} batch sizes times {count} combinations of sizes and optional inputs would have to be "
            f"warmed, at most {_MAX_BATCHES} can be: declare fewer buckets"
        )
    shapes = (
        _Shape(dict(zip(sizes, chosen, strict=True)), present)
        for chosen in product(*sizes.values())
        for present in inputs
    )
    # Axes of an input that is not there make no difference: shapes that differ in no others are one.
    different = {shape.key: shape for shape in shapes}
    batches = [_bucket_batch(size, shape, sample) for size in rows for shape in different.values()]
    return batches + plan_samples(signature, samples)


def smallest_row(signature: Signature, buckets: Buckets, samples: Sequence[Sample]) -> Tensors:
    """A request of one row (with batch axis) that fits the smallest bucket: one that :func:`plan_warmup` runs."""
    sample = samples[0].inputs if samples else {}
    sizes = {key: min(choices) for key, choices in _sizes(signature, buckets, sample).items()}
    *_, inputs = input_sets(signature.inputs)
    (row,) = _bucket_batch(1 if signature.batches else None, _Shape(sizes, inputs), sample).parts
    return row


def plan_samples(signature: Signature, samples: Sequence[Sample]) -> list[WarmupBatch]:
    """Only the configured samples: all that a session which sees requests whole may be run with."""
    return [
        WarmupBatch(f"sample '{sample.name}'", [_with_batch_axis(sample.inputs)] * sample.rows)
        if signature.batches
        else WarmupBatch(f"sample '{sample.name}'", [sample.inputs])
        for sample in samples
        for _ in range(sample.count)
    ]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes for the varying axes, by :func:`axis_key`, and which inputs are there."""

    sizes: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]

    @property
    def key(self) -> BatchKey:
        """The shapes of the inputs that are there, without the batch axis."""
        return tuple(sorted((spec.name, self.of(spec)) for spec in self.inputs))

    @property
    def label(self) -> str:
        """The sizes and optional inputs that tell it from others."""
        there = {axis_key(spec, index) for spec in self.inputs for index in range(len(spec.shape))}
        sizes = [f"{name} {size}" for name, size in self.sizes.items() if name in there]
        return ", ".join([*sizes, *(f"with {spec.name}" for spec in self.inputs if spec.optional)])

    def of(self, spec: TensorSpec) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(
            self.sizes[axis_key(spec, index)] if axis.size is None else axis.size
            for index, axis in enumerate(spec.shape)
        )


def axis_key(spec: TensorSpec, index: int) -> str:
    """What ties axis ``index`` of ``spec`` to others: its name, or nothing but its place."""
    return spec.shape[index].name or f"{spec.name}[{index}]"


def least_size(dimension: Dimension, *, above: int = 0) -> int | None:
    """The smallest allowed size that is greater than ``above``; None if there is none."""
    step = dimension.multiple_of
    size = -(-max(above + 1, dimension.minimum) // step) * step
    return size if dimension.allows(size) else None


def _sizes(signature: Signature, buckets: Buckets, sample: Tensors) -> Mapping[str, Sequence[int]]:
    """The sizes to run of each varying axis, by :func:`axis_key`, the largest first."""
    choices: dict[str, Sequence[int]] = {}
    for spec in signature.inputs:
        for index, axis in enumerate(spec.shape):
            if axis.size is not None:
                continue
            key = axis_key(spec, index)
            if axis.name and axis.name in buckets.sizes:
                choices[key] = buckets.sizes[axis.name]
            elif spec.name in sample:
                choices[key] = [sample[spec.name].shape[index]]
            else:
                choices.setdefault(key, _two_smallest(axis))
    return {key: sorted(sizes, reverse=True) for key, sizes in choices.items()}


def _two_smallest(axis: Dimension) -> Sequence[int]:
    first = least_size(axis)
    second = None if first is None else least_size(axis, above=first)
    # One that can only be empty is empty.
    return [size for size in (first, second) if size is not None] or [0]


def input_sets(specs: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, ...]]:
    """Which inputs a request may have: those that it must, with some of the others, in the signature's order."""
    optional = [spec.name for spec in specs if spec.optional]
    counts = range(len(optional) + 1) if len(optional) <= _ALL_COMBINATIONS else (0, 1, len(optional))
    for present in chain.from_iterable(combinations(optional, count) for count in counts):
        yield tuple(spec for spec in specs if not spec.optional or spec.name in present)


def _bucket_batch(rows: int | None, shape: _Shape, sample: Tensors) -> WarmupBatch:
    row = {spec.name: zeros(spec.datatype, shape.of(spec)) for spec in shape.inputs}
    if row.keys() == sample.keys() and all(
        sample[name].ndim == array.ndim and all(map(int.__le__, sample[name].shape, array.shape))
        for name, array in row.items()
    ):
        row = dict(sample)
    words = [f"batch {rows}" if rows else "", shape.label]
    label = ", ".join(filter(None, words)) or "one request"
    return WarmupBatch(label, [row] if rows is None else [_with_batch_axis(row)] * rows, shape.key)


def _with_batch_axis(row: Tensors) -> Tensors:
    return {name: array[np.newaxis] for name, array in row.items()}
