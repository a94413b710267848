"""How the inputs of a network may differ in ways that compiled code cannot overlook."""

from collections.abc import Iterator, Mapping
from math import prod

import torch
import torch._dynamo

from preheat.backend import Buckets, Dimension, Outside, Signature

# A model that may compile on requests does so for as many shapes beside its buckets, and fails the next.
OUTSIDE = 256
# torch takes no minimum without a maximum. No tensor has an axis of this size.
_UNBOUNDED = 2**48


class Variants:
    """The kinds of inputs that each need a graph of their own. Immutable.

    With static shapes that is every bucket: of rows, times those of each varying dimension. With ``dynamic``, sizes of
    the batch and of varying dimensions are symbols; but torch always compiles sizes of 0 and 1 apart, since such an
    axis is empty or broadcast. Which optional inputs are there is a difference in either case.
    """

    def __init__(self, signature: Signature, buckets: Buckets, *, dynamic: bool) -> None:
        self._signature = signature
        self._buckets = buckets
        self._dynamic = dynamic
        batch = (Dimension(minimum=1, maximum=signature.max_batch_size),) if signature.batches else ()
        self._shapes = {spec.name: (*batch, *spec.shape) for spec in signature.inputs}

    @property
    def limit(self) -> int:
        """How many there may be: those of the buckets, and ``OUTSIDE`` more where requests may compile."""
        present = prod(2 for spec in self._signature.inputs if spec.optional)
        if self._dynamic:
            return present * prod(max(1, 3 - axis.minimum) for axis in self._symbols())
        rows = len(self._buckets.rows) or max(1, self._signature.max_batch_size)
        names = {axis.name for spec in self._signature.inputs for axis in spec.shape if axis.size is None}
        sizes = prod(len(sizes) for name, sizes in self._buckets.sizes.items() if name in names)
        return present * rows * sizes + (OUTSIDE if self._buckets.outside is Outside.COMPILE else 0)

    def of(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Which one ``inputs`` are, as a key."""
        if not self._dynamic:
            return tuple((name, tensor.shape) for name, tensor in inputs.items())
        return tuple((name, tuple(min(size, 2) for size in tensor.shape)) for name, tensor in inputs.items())

    def mark(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Tell torch which sizes of ``inputs`` are symbols in the graph that is compiled of them."""
        for name, tensor in inputs.items():
            for index, axis in self._marked(name, tensor):
                most = _UNBOUNDED if axis.maximum is None else axis.maximum
                torch._dynamo.mark_dynamic(tensor, index, min=max(2, axis.minimum), max=most)

    def describe(self, inputs: Mapping[str, torch.Tensor]) -> str:
        """The shapes of ``inputs``, symbols as ``*``, for people to read: ``ids[8,*], mask[8,*]``."""
        return ", ".join(f"{name}[{','.join(self._sizes(name, tensor))}]" for name, tensor in inputs.items())

    def _sizes(self, name: str, tensor: torch.Tensor) -> list[str]:
        marked = {index for index, _ in self._marked(name, tensor)}
        return ["*" if index in marked else str(size) for index, size in enumerate(tensor.shape)]

    def _marked(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[int, Dimension]]:
        for index, axis in enumerate(self._shapes[name]):
            if self._dynamic and axis.size is None and tensor.shape[index] > 1:
                yield index, axis

    def _symbols(self) -> Iterator[Dimension]:
        """The axes that may vary: the batch, and of each name one."""
        if self._signature.max_batch_size > 1:
            yield Dimension(minimum=1, maximum=self._signature.max_batch_size)
        names: set[str] = set()
        for axis in (axis for spec in self._signature.inputs for axis in spec.shape):
            if axis.size is None and axis.name not in names:
                yield axis
                names.update({axis.name} if axis.name else ())
