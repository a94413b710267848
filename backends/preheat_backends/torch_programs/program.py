"""What a torch backend has loaded, ready to run."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a module is called with."""

    positional: tuple[torch.Tensor, ...] = ()
    keyword: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Program(ABC):
    """What is ready to run on a device. Every session shares it, and several may be in ``run`` at once.

    ``writes_inputs`` False: it is known never to write to its inputs, so they need not be copied for it.
    ``specializes_on_shape`` is as in :class:`preheat.backend.Model`.
    """

    writes_inputs: bool = True
    specializes_on_shape: bool = False

    @abstractmethod
    def arrange(self, inputs: Mapping[str, torch.Tensor]) -> Arguments:
        """Put tensors by the signature's input names where they are taken."""

    @abstractmethod
    def pick(self, result: Any) -> Mapping[str, torch.Tensor]:
        """The signature's outputs, by name, in what :meth:`call` returned. Raises ExecutionFailed if they are not."""

    @abstractmethod
    def keeps(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor``, an output, may lie in memory that the program keeps, as its weights do.

        Then it has to be copied, or whoever gets the answer could write to the model.
        """

    @abstractmethod
    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run on tensors by the signature's input names.

        What it raises may be anything: ServingError as it is, all else is the model's own failure.
        """

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Run on tensors by the signature's input names, and answer by its output names."""
        return self.pick(self.call(inputs))

    def adopt_thread(self) -> None:
        """Set the calling thread up to run the program. Each session's thread calls it once, before anything else."""
        return

    def close(self) -> None:
        """Undo what loading did to the process. Called once, after the last ``run``."""
        return


class NetworkProgram(Program):
    """A network, whatever artifact it came from and whatever was done to it since: it can run operator by operator."""

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The network itself."""

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run the network, and return what the module returns."""
        return self.call_eagerly(inputs)

    def call_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """As :meth:`call`, with nothing compiled."""
        arguments = self.arrange(inputs)
        return self.module(*arguments.positional, **arguments.keyword)

    def run_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """As :meth:`run`, with nothing compiled."""
        return self.pick(self.call_eagerly(inputs))


class Wrapped(NetworkProgram):
    """A program around another: what a subclass does not change is as in the other."""

    def __init__(self, inner: NetworkProgram) -> None:
        self._inner = inner
        self.writes_inputs = inner.writes_inputs
        self.specializes_on_shape = inner.specializes_on_shape

    @property
    def module(self) -> torch.nn.Module:
        """The other's."""
        return self._inner.module

    def arrange(self, inputs: Mapping[str, torch.Tensor]) -> Arguments:
        """As the other."""
        return self._inner.arrange(inputs)

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """As the other."""
        return self._inner.call(inputs)

    def call_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """As the other."""
        return self._inner.call_eagerly(inputs)

    def pick(self, result: object) -> Mapping[str, torch.Tensor]:
        """As the other."""
        return self._inner.pick(result)

    def keeps(self, tensor: torch.Tensor) -> bool:
        """As the other."""
        return self._inner.keeps(tensor)

    def adopt_thread(self) -> None:
        """As the other."""
        self._inner.adopt_thread()

    def close(self) -> None:
        """As the other."""
        self._inner.close()


class Storages:
    """The memory behind some tensors, by its addresses. Immutable."""

    def __init__(self, tensors: Iterable[object]) -> None:
        self._addresses = frozenset(
            part.untyped_storage().data_ptr()
            for tensor in tensors
            if isinstance(tensor, torch.Tensor)
            for part in _parts(tensor)
        )

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in that memory, whole or in part."""
        return any(part.untyped_storage().data_ptr() in self._addresses for part in _parts(tensor))


def _parts(tensor: Any) -> Iterable[torch.Tensor]:
    """The plain tensors that ``tensor`` is made of: itself, unless its class wraps some, as torchao's do."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names: Iterable[str] = tensor.__tensor_flatten__()[0]
    return [part for name in names for part in _parts(getattr(tensor, name))]


def first_line(error: BaseException) -> str:
    """Type and first line of ``error``: torch appends pages of traces and advice to its messages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
