"""Whether a model can be padded at all: padded and unpadded inputs must have the same answers.

A model whose pooling ignores its mask, say, takes padding for data. That is not seen in any one answer, so it is tried
before the model is announced.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from preheat.backend import Buckets, Dimension, Signature, TensorSpec
from preheat.errors import LoadFailed
from preheat.scheduling.output_check import OutputCheck
from preheat.scheduling.padding import Padding, PadValues
from preheat.scheduling.warmup import input_sets, least_size
from preheat.tensors import Array, DataType, Tensors

# Far more than rounding, in whatever precision a model computes, and far less than a row of padding taken for data.
DEFAULT_TOLERANCE = 0.01
Infer = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class PaddingCheck:
    """What is needed to try one model version's padding. ``sample`` is one row, of which as much as fits is used."""

    model: str
    signature: Signature
    buckets: Buckets
    pad_values: PadValues
    sample: Tensors
    tolerance: float = DEFAULT_TOLERANCE

    def run(self, infer: Infer) -> None:
        """Compare, for every bucket of every dimension, the shortest input that it holds. Blocks.

        ``infer`` runs arrays at the very shapes they have. Raises LoadFailed naming dimension, bucket and output, and
        what ``infer`` raises.
        """
        padding = Padding(self.signature, Buckets(sizes=self.buckets.sizes), self.pad_values)
        for (name, size, bucket), present in product(self._cases(), list(input_sets(self.signature.inputs))):
            if all(axis.name != name for spec in present for axis in spec.shape):
                continue
            row = self._row(present, name, size)
            key = padding.key(row)
            rows = 1 if self.signature.batches else None
            padded = self._answers(infer, padding.collate([row], rows, key))
            answers = padding.cut(padded, row, None if rows is None else slice(0, rows))
            for output, expected in self._answers(infer, row).items():
                self._compare(output, answers[output], expected, f"{name} {size} padded to {bucket}")

    def _answers(self, infer: Infer, inputs: Tensors) -> Tensors:
        """The outputs, held against the signature and copied: the next run may overwrite them."""
        rows = 1 if self.signature.batches else None
        outputs = OutputCheck(self.model, self.signature).check(infer(inputs), inputs, rows)
        return {name: array.copy() for name, array in outputs.items()}

    def _cases(self) -> Iterator[tuple[str, int, int]]:
        """For each bucket its dimension, the smallest size that is padded to it, and its own size."""
        axes = {axis.name: axis for spec in self.signature.inputs for axis in spec.shape}
        for name, sizes in self.buckets.sizes.items():
            for below, bucket in zip((0, *sizes), sizes, strict=False):
                size = least_size(axes[name], above=below)
                if size is not None and size < bucket:
                    yield name, size, bucket

    def _row(self, present: Sequence[TensorSpec], name: str, size: int) -> Tensors:
        """One request's inputs, with ``size`` in dimension ``name`` and the smallest sizes in all others."""
        row = {spec.name: self._input(spec, name, size) for spec in present}
        return {each: array[np.newaxis] for each, array in row.items()} if self.signature.batches else row

    def _input(self, spec: TensorSpec, name: str, size: int) -> Array:
        sample = self.sample.get(spec.name)
        shape = [
            size if axis.name == name else self._size(axis, None if sample is None else sample.shape[index])
            for index, axis in enumerate(spec.shape)
        ]
        return _values(spec, tuple(shape), sample, self.pad_values)

    def _size(self, axis: Dimension, own: int | None) -> int:
        """The size of an axis that is not tried just now: the smallest; or the sample's, where that is not padded."""
        if axis.size is not None:
            return axis.size
        return (least_size(axis) or 0) if own is None or axis.name in self.buckets.sizes else own

    def _compare(self, output: str, actual: Array, expected: Array, what: str) -> None:
        if actual.shape != expected.shape:
            raise LoadFailed(
                f"padding changes the answer: output '{output}' of {what} has the shape {list(actual.shape)}, not "
                f"{list(expected.shape)}, since it is not cut back: name its dimensions in parameter "
                f"preheat.shape.{output}, as those of the inputs are"
            )
        difference = _difference(actual, expected)
        if difference > self.tolerance:
            raise LoadFailed(
                f"padding changes the answer: output '{output}' of {what} differs by {difference:.1%} of its largest "
                f"value, allowed is {self.tolerance:.1%}. The model takes padding for data: have it heed its mask, see "
                "that every preheat.pad.INPUT is what it ignores, or leave the buckets of that dimension out"
            )


def _values(spec: TensorSpec, sizes: tuple[int, ...], sample: Array | None, pads: PadValues) -> Array:
    """The corner of ``sample``, where that is large enough; else values that are valid and are not padding.

    Whole numbers are 1, or where that is padding 0: a token, and a mask that lets it through. Others vary, in sign too:
    the maximum of what is positive is not changed by zeros.
    """
    if sample is not None and all(map(int.__le__, sizes, sample.shape)):
        return np.ascontiguousarray(sample[tuple(map(slice, sizes))])
    if spec.datatype is DataType.BYTES:
        return np.full(sizes, b"preheat", np.object_)
    if spec.datatype.numpy.kind in "iub":
        return np.full(sizes, 0 if pads.get(spec.name) == 1 else 1, spec.datatype.numpy)
    return np.random.default_rng(0).normal(size=sizes).astype(spec.datatype.numpy)


def _difference(actual: Array, expected: Array) -> float:
    """The largest difference as a share of the largest value; of what is not floating-point, 0 or 1."""
    if expected.dtype.kind in "iubO":
        return float(not np.array_equal(actual, expected))
    ours, theirs = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(np.isfinite(ours), finite):
        return 1.0
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return 1.0
    largest = float(np.abs(theirs[finite]).max(initial=0.0))
    distance = float(np.abs(ours[finite] - theirs[finite]).max(initial=0.0))
    return distance / largest if largest else distance
