"""``reshape``: tensors whose dims differ between client and model."""

from collections.abc import Sequence
from dataclasses import dataclass

from preheat.backend import Dimension
from preheat.tensors import Array


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in two shapes, both without the batch axis.

    Variable axes correspond in order: the n-th of ``client`` has the size of the n-th of ``model``.
    """

    client: tuple[Dimension, ...]
    model: tuple[Dimension, ...]

    def to_model(self, array: Array, *, batched: bool) -> Array:
        """A view of a client's ``array`` as the model takes it."""
        return _view(array, self.client, self.model, lead=int(batched))

    def to_client(self, array: Array, *, batched: bool) -> Array:
        """A view of a model's ``array`` as clients get it."""
        return _view(array, self.model, self.client, lead=int(batched))


def _view(array: Array, source: Sequence[Dimension], target: Sequence[Dimension], *, lead: int) -> Array:
    sizes = iter([size for axis, size in zip(source, array.shape[lead:], strict=True) if axis.size is None])
    shape = [next(sizes) if axis.size is None else axis.size for axis in target]
    return array.reshape(*array.shape[:lead], *shape)
