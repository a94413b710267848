"""One thread's way into a program: host arrays in, host arrays out."""

from contextlib import AbstractContextManager, nullcontext

import torch

from preheat.backend import Instance, Model, Session, TensorSession
from preheat.errors import ExecutionFailed, ServingError
from preheat.tensors import Tensors
from preheat_backends.eager.program import Program, first_line
from preheat_backends.torch_tensors import to_numpy, to_torch


class EagerModel(Model):
    """A program on one device."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program = program
        self._device = device

    def open(self, instance: Instance) -> Session:
        """Open a session that computes with ``instance.threads`` threads, on a CUDA device in a stream of its own."""
        _use_threads(instance.threads)
        return EagerSession(self._program, self._device)

    def close(self) -> None:
        """Let go of the weights, whoever still holds the model."""
        self._program.close()
        del self._program


class EagerSession(TensorSession):
    """Runs a program under inference mode. Belongs to the thread that opened it."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program = program
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch. Inputs are neither written to nor kept, outputs are the caller's own."""
        try:
            with torch.inference_mode(), self._in_stream():
                return self._run(inputs)
        except ServingError:
            raise
        except Exception as exc:
            raise ExecutionFailed(f"eager: {first_line(exc)}") from exc

    def close(self) -> None:
        """Let go of the program, whoever still holds the session."""
        del self._program

    def _run(self, inputs: Tensors) -> Tensors:
        program = self._program
        borrow = not program.writes_inputs
        tensors = {name: to_torch(array, self._device, borrow=borrow) for name, array in inputs.items()}
        outputs = program.run(tensors)
        kept = program.storages
        if borrow and self._device.type == "cpu":
            kept = kept.union(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
        return {
            name: to_numpy(tensor, copy=tensor.untyped_storage().data_ptr() in kept) for name, tensor in outputs.items()
        }

    def _in_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _use_threads(threads: int) -> None:
    """Make this thread compute with ``threads`` threads.

    torch keeps the number by thread, but on a thread's first look at it replaces it by the number that was last set
    anywhere. So look first. (Threads that torch has not seen yet start with this number too.)
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)
