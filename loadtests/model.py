"""What a load test knows of a model: enough to make requests for it and to check its answers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output. ``dims`` are without the batch axis; -1 varies."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model version as it is served.

    ``max_batch_size`` is 0 for a model without a batch axis; ``optional`` names inputs that may be left out.
    """

    name: str
    version: str
    max_batch_size: int
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    optional: frozenset[str] = frozenset()
