"""What the two kinds of artifact have in common once they are loaded."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch


class Program(ABC):
    """A model on its device, ready to run. Every session shares it, and several may be in ``run`` at once.

    ``writes_inputs`` False: it is known never to write to its inputs, so they need not be copied for it.
    ``storages`` are the addresses of the memory it keeps, its weights above all: an output that lies in one of them
    has to be copied, or whoever gets the answer could write to the model.
    """

    writes_inputs: bool = True
    storages: frozenset[int] = frozenset()

    @abstractmethod
    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Run on tensors by the signature's input names, and answer by its output names.

        What it raises may be anything: ServingError as it is, all else is the model's own failure.
        """

    def close(self) -> None:
        """Undo what loading did to the process. Called once, after the last ``run``."""
        return


def storages(tensors: Iterable[object]) -> frozenset[int]:
    """The addresses of the memory behind those of ``tensors`` that are tensors."""
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor))


def first_line(error: BaseException) -> str:
    """Type and first line of ``error``: torch appends pages of traces and advice to its messages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
