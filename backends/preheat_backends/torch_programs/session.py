"""One thread's way into a program: host arrays in, host arrays out."""

import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import TypeAlias

import torch
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

from preheat.backend import Instance, Model, TensorSession
from preheat.errors import ExecutionFailed, ServingError
from preheat.tensors import Array, Tensors
from preheat_backends.torch_programs.program import NetworkProgram, Program, first_line
from preheat_backends.torch_programs.transfers import Transfers, allocate_pinned
from preheat_backends.torch_tensors import to_numpy, to_torch

_Run: TypeAlias = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


class TorchModel(Model):
    """A program on one device. ``backend`` is what failures begin with.

    ``threads``, ``instances``: the only number that the program is good for; None: any.
    """

    def __init__(
        self,
        program: Program,
        device: torch.device,
        *,
        backend: str,
        threads: int | None = None,
        instances: int | None = None,
    ) -> None:
        self._program = program
        self._threads = threads
        self._instances = instances
        self._device = device
        self._backend = backend
        self.specializes_on_shape = program.specializes_on_shape
        self.runs_eagerly = isinstance(program, NetworkProgram)

    def can_have(self, instances: int, threads: int) -> bool:
        """Sessions set their thread's number, so all that counts is what the program was made for."""
        return self._threads in (None, threads) and self._instances in (None, instances)

    def open(self, instance: Instance) -> "TorchSession":
        """Open a session that computes with ``instance.threads`` threads, on a CUDA device in a stream of its own."""
        _use_threads(instance.threads)
        _pass_over_profilers()
        self._program.adopt_thread()
        if isinstance(self._program, NetworkProgram):
            return NetworkSession(self._program, self._device, backend=self._backend)
        return TorchSession(self._program, self._device, backend=self._backend)

    def close(self) -> None:
        """Let go of the weights, whoever still holds the model."""
        self._program.close()
        del self._program


def _pass_over_profilers() -> None:
    """Have dynamo take the thread's profiler, with what that calls, for no part of what it compiles.

    The server paces loads by one. Met in a region that is compiled, it would break graphs, or fail a whole one.
    """
    profiler = sys.getprofile()
    if isinstance(profiler, FunctionType):
        set_code_exec_strategy(profiler.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))


class TorchSession(TensorSession):
    """Runs a program under inference mode. Belongs to the thread that opened it."""

    def __init__(self, program: Program, device: torch.device, *, backend: str) -> None:
        self._program = program
        self._device = device
        self._backend = backend
        self._transfers = Transfers(device) if device.type == "cuda" else None

    def allocate(self, size: int) -> Array:
        """Where the device is a GPU, pinned memory, which it reads without a copy in between."""
        return super().allocate(size) if self._transfers is None else allocate_pinned(size)

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch. Inputs are neither written to nor kept.

        Outputs are the caller's own; those of a GPU are good until the next batch.
        """
        return self._answer(inputs, self._program.run)

    def close(self) -> None:
        """Let go of the program, whoever still holds the session."""
        del self._program

    def _answer(self, inputs: Tensors, run: _Run) -> Tensors:
        try:
            # The one mode there is, for warm-up and for clients: compiled code is good for the mode it was traced in.
            with torch.inference_mode():
                if self._transfers is not None:
                    return self._run_on_device(self._transfers, inputs, run)
                return self._run_on_host(inputs, run)
        except ExecutionFailed as exc:
            raise ExecutionFailed(f"{self._backend}: {exc}") from exc
        except ServingError:
            raise
        except Exception as exc:
            raise ExecutionFailed(f"{self._backend}: {first_line(exc)}") from exc

    def _run_on_host(self, inputs: Tensors, run: _Run) -> Tensors:
        program = self._program
        borrow = not program.writes_inputs
        tensors = {name: to_torch(array, self._device, borrow=borrow) for name, array in inputs.items()}
        outputs = run(tensors)
        borrowed: frozenset[int] = frozenset()
        if borrow:
            borrowed = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
        return {
            name: to_numpy(tensor, copy=tensor.untyped_storage().data_ptr() in borrowed or program.keeps(tensor))
            for name, tensor in outputs.items()
        }

    def _run_on_device(self, transfers: Transfers, inputs: Tensors, run: _Run) -> Tensors:
        with transfers.running():
            return transfers.download(run(transfers.upload(inputs)))


class NetworkSession(TorchSession):
    """As the other, of a network, which can run without what was compiled."""

    def __init__(self, program: NetworkProgram, device: torch.device, *, backend: str) -> None:
        super().__init__(program, device, backend=backend)
        self._network = program

    def infer_eagerly(self, inputs: Tensors) -> Tensors:
        """Run one batch operator by operator, whatever its shape: same weights, same casts, same copies."""
        return self._answer(inputs, self._network.run_eagerly)

    def close(self) -> None:
        """Let go of the program, whoever still holds the session."""
        super().close()
        del self._network


def _use_threads(threads: int) -> None:
    """Make this thread compute with ``threads`` threads.

    torch keeps the number by thread, but on a thread's first look at it replaces it by the number that was last set
    anywhere. So look first. (Threads that torch has not seen yet start with this number too.)
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)
