"""Holding what a session gives against what its model promised. Pure: called on instance threads, keeps nothing."""

from collections.abc import Mapping, Sequence

import numpy as np

from preheat.backend import Signature, TensorSpec
from preheat.errors import ExecutionFailed
from preheat.tensors import Array, DataType, Tensors

# As many combinations of shapes as are remembered.
_MOST_PASSED = 1024


class OutputCheck:
    """Holds a session's outputs against the signature: a model that breaks its promise must not break its callers.

    Any thread. ``_passed`` has shapes and types that were found right, which are most of what is asked about.
    """

    def __init__(self, model: str, signature: Signature) -> None:
        self._model = model
        self._signature = signature
        self._names = tuple(spec.name for spec in signature.outputs)
        self._looks_inside = any(spec.datatype is DataType.BYTES for spec in signature.outputs)
        self._passed: set[tuple[object, ...]] = set()

    def check(self, outputs: Tensors, inputs: Tensors, rows: int | None, names: Sequence[str] = ()) -> Tensors:
        """The outputs called ``names``, all of the signature's if empty, checked.

        Raises ExecutionFailed naming the first that breaks its promise.

        ``rows`` is the batch axis of ``inputs``, None for a model without one. Named dimensions of outputs must have
        the sizes that they have in ``inputs``.
        """
        seen = None if names or self._looks_inside else self._look(outputs, inputs, rows)
        if seen is not None and seen in self._passed:
            return {name: outputs[name] for name in self._names}
        checked = self._check(outputs, inputs, rows, names)
        if seen is not None:
            if len(self._passed) >= _MOST_PASSED:
                self._passed.clear()
            self._passed.add(seen)
        return checked

    def _look(self, outputs: Tensors, inputs: Tensors, rows: int | None) -> tuple[object, ...] | None:
        """All that the check depends on; None where there is something that is no array, as there should be."""
        seen: list[object] = [rows, *[array.shape for array in inputs.values()], *inputs]
        try:
            for name in self._names:
                output = outputs[name]
                if type(output) is not np.ndarray:
                    return None
                seen += (output.shape, output.dtype)
        except (KeyError, TypeError, IndexError):
            return None
        return tuple(seen)

    def _check(self, outputs: Tensors, inputs: Tensors, rows: int | None, names: Sequence[str]) -> Tensors:
        if not isinstance(outputs, Mapping):
            raise ExecutionFailed(f"model '{self._model}' gave {type(outputs).__name__} instead of outputs")
        sizes = self._named_sizes(inputs)
        return {
            spec.name: self._check_one(spec, outputs.get(spec.name), rows, sizes)
            for spec in self._signature.outputs
            if not names or spec.name in names
        }

    def _named_sizes(self, inputs: Tensors) -> Mapping[str, int]:
        skip = int(self._signature.batches)
        return {
            dimension.name: size
            for spec in self._signature.inputs
            if spec.name in inputs
            for dimension, size in zip(spec.shape, inputs[spec.name].shape[skip:], strict=True)
            if dimension.name is not None
        }

    def _check_one(self, spec: TensorSpec, output: object, rows: int | None, sizes: Mapping[str, int]) -> Array:
        subject = f"output '{spec.name}' of model '{self._model}'"
        if output is None:
            raise ExecutionFailed(f"model '{self._model}' gave no output '{spec.name}'")
        if not isinstance(output, np.ndarray | np.generic):
            raise ExecutionFailed(f"{subject} is no array: {type(output).__name__}")
        array: Array = np.asarray(output)
        if array.dtype != spec.datatype.numpy:
            raise ExecutionFailed(f"{subject} is {array.dtype}, its signature says {spec.datatype.value}")
        if spec.datatype is DataType.BYTES and not all(isinstance(element, bytes) for element in array.flat):
            raise ExecutionFailed(f"{subject} has elements that are no bytes")
        if rows is not None and (array.ndim == 0 or array.shape[0] != rows):
            got = array.shape[0] if array.ndim else "none"
            raise ExecutionFailed(f"{subject} has {got} rows for a batch of {rows}")
        shape = array.shape if rows is None else array.shape[1:]
        fits = len(shape) == len(spec.shape) and all(
            dimension.allows(size) and sizes.get(dimension.name or "", size) == size
            for dimension, size in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            expected = ", ".join(str(sizes.get(dimension.name or "", dimension)) for dimension in spec.shape)
            each = "" if rows is None else "for each row "
            raise ExecutionFailed(f"{subject} has shape {list(shape)} {each}and should have [{expected}]")
        return array
