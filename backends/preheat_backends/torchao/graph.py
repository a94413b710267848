"""A ``model.py`` whose module was replaced by a graph of it."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch.export import Dim

from preheat.backend import Buckets, Dimension, Signature
from preheat_backends.torch_programs.program import Program, Storages, Wrapped
from preheat_backends.torch_tensors import DTYPES

# No other axis has this name.
_BATCH = "\0"


class GraphProgram(Wrapped):
    """``graph`` in place of the module of another program, whose weights are let go of."""

    def __init__(self, inner: Program, graph: torch.fx.GraphModule) -> None:
        super().__init__(inner)
        self._graph = graph
        self._kept = Storages(chain(graph.parameters(), graph.buffers()))
        inner.module.to("meta")

    @property
    def module(self) -> torch.nn.Module:
        """The graph."""
        return self._graph

    def call_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run the graph, operator by operator."""
        arguments = self.arrange(inputs)
        return self._graph(*arguments.positional, **arguments.keyword)

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """The same: it is compiled by whoever wraps this."""
        return self.call_eagerly(inputs)

    def keeps(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in a weight of the graph."""
        return self._kept.hold(tensor)


def example_inputs(signature: Signature, buckets: Buckets) -> dict[str, torch.Tensor]:
    """Zeros of such sizes as ``signature`` and ``buckets`` allow, and more than one along an axis that may vary."""
    examples = {}
    for spec in signature.inputs:
        sizes = [_example_size(axis, buckets) for axis in spec.shape]
        batch = [min(2, signature.max_batch_size)] if signature.batches else []
        examples[spec.name] = torch.zeros([*batch, *sizes], dtype=DTYPES[spec.datatype])
    return examples


def dynamic_shapes(signature: Signature) -> dict[str, dict[int, Any]]:
    """Which axes of which inputs may vary, and how far, as torch.export takes it."""
    symbols: dict[str, Any] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for spec in signature.inputs:
        batch = (Dimension(_BATCH, 1, signature.max_batch_size),) if signature.batches else ()
        axes = shapes[spec.name] = {}
        for index, axis in enumerate((*batch, *spec.shape)):
            if axis.size is None and axis.maximum != 1:
                name = axis.name or f"{spec.name} {index}"
                if name not in symbols:
                    symbols[name] = _symbol(axis, len(symbols))
                axes[index] = symbols[name]
    return shapes


def _symbol(axis: Dimension, number: int) -> Any:
    step = axis.multiple_of
    symbol = Dim(
        f"axis_{number}",
        min=max(1, -(-axis.minimum // step)),
        max=None if axis.maximum is None else axis.maximum // step,
    )
    return symbol if step == 1 else step * symbol


def _example_size(axis: Dimension, buckets: Buckets) -> int:
    """A size of the axis. Not 1, which torch.export would take for the only one."""
    if axis.size is not None:
        return axis.size
    wanted = max(buckets.sizes.get(axis.name or "", (3,)))
    least = max(2, axis.minimum, min(wanted, axis.maximum or wanted))
    size = -(-least // axis.multiple_of) * axis.multiple_of
    return size if axis.maximum is None else min(size, axis.maximum // axis.multiple_of * axis.multiple_of)
