"""Names and shapes as people read them, in errors and in the log."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class _Shaped(Protocol):
    @property
    def shape(self) -> Iterable[int]:
        """The sizes of all axes."""


def list_names(names: Iterable[object], *, limit: int = 5) -> str:
    """The first few, quoted, and how many more there are."""
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - limit} more" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + more


def list_shapes(tensors: Mapping[str, _Shaped]) -> str:
    """Names and sizes: ``ids[8,32], mask[8,32]``."""
    return ", ".join(f"{name}[{','.join(map(str, tensor.shape))}]" for name, tensor in tensors.items())
