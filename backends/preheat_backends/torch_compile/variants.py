"""How the inputs of a network may differ in ways that compiled code cannot overlook."""

from collections.abc import Iterator, Mapping
from math import prod

import torch
import torch._dynamo

from preheat.backend import Dimension, Signature


class Variants:
    """The kinds of inputs that each need a graph of their own. Immutable.

    With static shapes that is every batch size. With ``dynamic``, sizes of the batch and of varying dimensions are
    symbols; but torch always compiles a size of 1 apart, since such an axis is broadcast. Which optional inputs are
    there is a difference in either case.
    """

    def __init__(self, signature: Signature, *, dynamic: bool) -> None:
        self._signature = signature
        self._dynamic = dynamic
        batch = (Dimension(minimum=1, maximum=signature.max_batch_size),) if signature.batches else ()
        self._shapes = {spec.name: (*batch, *spec.shape) for spec in signature.inputs}

    @property
    def count(self) -> int:
        """How many there are, at most."""
        present = prod(2 for spec in self._signature.inputs if spec.optional)
        if not self._dynamic:
            return present * max(1, self._signature.max_batch_size)
        return present * prod(2 if axis.minimum <= 1 else 1 for axis in self._symbols())

    def of(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Which one ``inputs`` are, as a key."""
        if not self._dynamic:
            return tuple((name, tensor.shape) for name, tensor in inputs.items())
        return tuple((name, tuple(min(size, 2) for size in tensor.shape)) for name, tensor in inputs.items())

    def mark(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Tell torch which sizes of ``inputs`` are symbols in the graph that is compiled of them."""
        if not self._dynamic:
            return
        for name, tensor in inputs.items():
            for index, axis in enumerate(self._shapes[name]):
                if axis.size is None and tensor.shape[index] > 1:
                    torch._dynamo.mark_dynamic(tensor, index, min=max(2, axis.minimum), max=axis.maximum)

    def _symbols(self) -> Iterator[Dimension]:
        """The axes that may vary: the batch, and of each name one."""
        if self._signature.max_batch_size > 1:
            yield Dimension(minimum=1, maximum=self._signature.max_batch_size)
        names: set[str] = set()
        for axis in (axis for spec in self._signature.inputs for axis in spec.shape):
            if axis.size is None and axis.name not in names:
                yield axis
                names.update({axis.name} if axis.name else ())
