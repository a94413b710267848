"""A ``model.py`` whose module was replaced by a graph of it."""

from collections.abc import Mapping
from itertools import chain

import torch

from preheat_backends.torch_programs.program import NetworkProgram, Storages, Wrapped


class GraphProgram(Wrapped):
    """``graph`` in place of the module of another program, whose weights are let go of."""

    def __init__(self, inner: NetworkProgram, graph: torch.fx.GraphModule) -> None:
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
