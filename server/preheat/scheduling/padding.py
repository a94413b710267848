"""Padding requests up to the shapes that a model was warmed for, and cutting its answers back. Pure: any thread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preheat.backend import Buckets, Dimension, Outside, Signature
from preheat.errors import InvalidRequest
from preheat.memory.staging import Room, is_readable
from preheat.scheduling.pending import BatchKey
from preheat.tensors import Array, Tensors

PadValues = Mapping[str, bool | int | float | bytes]


def _new_room(_: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
    return np.empty(shape, dtype)


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of a tensor, the batch axis not counted, and the dimension with buckets that it is."""

    index: int
    name: str


class Padding:
    """How one model version's requests become the shapes in its ``buckets``. Immutable.

    Empty ``buckets.rows``: batches run at their own size. ``pad_values`` by input name, for every input that has an
    axis with buckets.
    """

    def __init__(self, signature: Signature, buckets: Buckets, pad_values: PadValues) -> None:
        self._buckets = buckets
        self._pad_values = pad_values
        self._lead = int(signature.batches)
        self._inputs = {spec.name: _axes(spec.shape, buckets) for spec in signature.inputs}
        self._outputs = {spec.name: axes for spec in signature.outputs if (axes := _axes(spec.shape, buckets))}

    def bucket_rows(self, rows: int) -> int:
        """The batch size that ``rows`` run as."""
        return bucket_for(rows, self._buckets.rows)

    def key(self, inputs: Tensors) -> BatchKey:
        """Who may share a batch with ``inputs``: for each the shape that it is padded to, without the batch axis."""
        return tuple(sorted((name, self._shape(name, array)) for name, array in inputs.items()))

    def fits(self, key: BatchKey) -> bool:
        """Whether shapes by :meth:`key` are those of buckets."""
        return all(shape[axis.index] in self._sizes(axis) for name, shape in key for axis in self._inputs[name])

    def refuse_outside(self, model: str, inputs: Tensors) -> None:
        """Raise InvalidRequest for a size that no bucket holds, unless the model takes such."""
        if not self._buckets.sizes or self._buckets.outside is not Outside.REFUSE:
            return
        for name, array in inputs.items():
            for axis in self._inputs[name]:
                size, sizes = array.shape[self._lead + axis.index], self._sizes(axis)
                if size > sizes[-1]:
                    raise InvalidRequest(
                        f"input '{name}' for model '{model}' has {size} in dimension '{axis.name}', which is beyond "
                        f"every bucket: {', '.join(map(str, sizes))}"
                    )

    def collate(self, parts: Sequence[Tensors], rows: int | None, key: BatchKey, room: Room = _new_room) -> Tensors:
        """Join ``parts`` along the batch axis, padded to the shapes of their common ``key`` and to ``rows`` rows.

        ``rows`` None: the model has no batch axis, and there is one part. Rows are padded by repeating the first, since
        zeros may be invalid input; other axes by the input's pad value. ``room`` makes room for what is joined. A lone
        part that needs no padding and is aligned is passed on as it is, uncopied.
        """
        shapes = dict(key)
        return {name: self._join(name, [part[name] for part in parts], rows, shapes[name], room) for name in parts[0]}

    def cut(self, outputs: Tensors, inputs: Tensors, rows: slice | None) -> Tensors:
        """One request's views of ``outputs``: its ``rows``, and where it was padded, the sizes of its ``inputs``."""
        cut = outputs if rows is None else {name: array[rows] for name, array in outputs.items()}
        if not self._outputs:
            return cut
        sizes = self._own_sizes(inputs)
        return {name: self._cut_axes(name, array, sizes) for name, array in cut.items()}

    def _shape(self, name: str, array: Array) -> tuple[int, ...]:
        shape = array.shape[self._lead :]
        axes = self._inputs[name]
        if not axes:
            return shape
        sizes = list(shape)
        for axis in axes:
            sizes[axis.index] = bucket_for(sizes[axis.index], self._sizes(axis))
        return tuple(sizes)

    def _sizes(self, axis: _Axis) -> tuple[int, ...]:
        return self._buckets.sizes[axis.name]

    def _join(self, name: str, arrays: Sequence[Array], rows: int | None, shape: tuple[int, ...], room: Room) -> Array:
        whole = shape if rows is None else (rows, *shape)
        if len(arrays) == 1 and arrays[0].shape == whole and is_readable(arrays[0]):
            return arrays[0]
        joined = room(name, whole, arrays[0].dtype)
        if rows is None:
            self._place(name, arrays[0], joined)
            return joined
        end = 0
        for array in arrays:
            start, end = end, end + array.shape[0]
            self._place(name, array, joined[start:end])
        if end < rows:
            joined[end:] = joined[:1]
        return joined

    def _place(self, name: str, array: Array, room: Array) -> None:
        """Put ``array`` into the corner of ``room``, and padding into what is left of it."""
        if array.shape == room.shape:
            room[...] = array
            return
        room[...] = self._pad_values[name]
        room[tuple(map(slice, array.shape))] = array

    def _own_sizes(self, inputs: Tensors) -> Mapping[str, int]:
        return {
            axis.name: array.shape[self._lead + axis.index]
            for name, array in inputs.items()
            for axis in self._inputs[name]
        }

    def _cut_axes(self, name: str, array: Array, sizes: Mapping[str, int]) -> Array:
        if name not in self._outputs:
            return array
        ends: list[slice] = [slice(None)] * array.ndim
        for axis in self._outputs[name]:
            if axis.name in sizes:
                ends[self._lead + axis.index] = slice(sizes[axis.name])
        return array[tuple(ends)]


def bucket_for(size: int, buckets: Sequence[int]) -> int:
    """The smallest of ``buckets`` (ascending) that holds ``size``; ``size`` itself when none does."""
    return next((bucket for bucket in buckets if bucket >= size), size)


def _axes(shape: Sequence[Dimension], buckets: Buckets) -> tuple[_Axis, ...]:
    return tuple(
        _Axis(index, axis.name) for index, axis in enumerate(shape) if axis.name in buckets.sizes and axis.name
    )
