"""A loaded package."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from preheat_backends.aot_inductor.running import Runner
from preheat_backends.torch_programs.program import Arguments, Program


class PackageProgram(Program):
    """A package's network. Its runners are as many as there are sessions, so none waits for another.

    ``inputs`` are names in the order of the call, ``outputs`` for each name the place of its tensor in the answer.
    """

    def __init__(
        self, runner: Runner, *, inputs: Sequence[str], outputs: Mapping[str, int], writes_inputs: bool
    ) -> None:
        self._runner = runner
        self._inputs = tuple(inputs)
        self._outputs = outputs
        self.writes_inputs = writes_inputs

    def arrange(self, inputs: Mapping[str, torch.Tensor]) -> Arguments:
        """In the order of the call."""
        return Arguments(tuple(inputs[name] for name in self._inputs))

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run the package's code, on a CUDA device in the thread's stream."""
        return self._runner.run(self.arrange(inputs).positional)

    def pick(self, result: Any) -> Mapping[str, torch.Tensor]:
        """The outputs asked for."""
        return {name: result[index] for name, index in self._outputs.items()}

    def keeps(self, tensor: torch.Tensor) -> bool:  # noqa: ARG002 - the contract's signature
        """Never: generated code copies a constant, or a view of one, before it returns it."""
        return False

    def close(self) -> None:
        """Unload the library."""
        self._runner.close()
