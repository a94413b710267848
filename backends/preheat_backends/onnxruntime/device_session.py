"""Instances of a model on a GPU: inputs go there from page-locked memory, and outputs come back into such.

Not run on a GPU yet. The inference session is shared and given no stream: each of its runs takes one of its own, and
has waited for it when it returns.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from preheat.backend import TensorSession, TensorSpec
from preheat.errors import ExecutionFailed
from preheat.memory.staging import allocate_aligned
from preheat.tensors import Array, Tensors
from preheat_backends.onnxruntime.library import first_line
from preheat_backends.onnxruntime.sessions import BF16, ONNX_BFLOAT16, make_run_options, to_array


@dataclass(frozen=True, slots=True)
class Place:
    """Where outputs are left by a run, as ONNX Runtime calls it."""

    kind: str
    index: int


HOST = Place("cpu", 0)


def find_torch() -> ModuleType | None:
    """torch, if it is installed and sees a GPU: it has the page-locked memory and the copies that ONNX Runtime has not.

    Without it outputs are left on the host, by way of ordinary memory.
    """
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


class DeviceSession(TensorSession):
    """Binds inputs and outputs to memory for each run. ``torch`` None: ONNX Runtime copies the outputs to the host."""

    def __init__(self, session: Any, outputs: tuple[TensorSpec, ...], device: Place, torch: ModuleType | None) -> None:
        self._session = session
        self._outputs = outputs
        self._place = HOST if torch is None else device
        self._torch = torch
        self._options = make_run_options()
        # Room for each output on the host, page-locked, as large as the largest so far.
        self._rooms: dict[str, Array] = {}

    def allocate(self, size: int) -> Array:
        """Page-locked memory, which the GPU reads by itself."""
        return allocate_page_locked(size, self._torch)

    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch. Outputs are good until the next one."""
        try:
            values = self._run(inputs)
            return {spec.name: self._fetch(spec, value) for spec, value in zip(self._outputs, values, strict=True)}
        except Exception as exc:
            raise ExecutionFailed(f"onnxruntime: {first_line(exc)}") from exc

    def close(self) -> None:
        """Let go of the inference session, whoever still holds this one."""
        del self._session

    def _run(self, inputs: Tensors) -> list[Any]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            element = ONNX_BFLOAT16 if array.dtype == BF16 else array.dtype
            binding.bind_input(name, HOST.kind, HOST.index, element, array.shape, array.ctypes.data)
        for spec in self._outputs:
            binding.bind_output(spec.name, self._place.kind, self._place.index)
        self._session.run_with_iobinding(binding, self._options)
        values: list[Any] = binding.get_outputs()
        return values

    def _fetch(self, spec: TensorSpec, value: Any) -> Array:
        if self._torch is None:
            return to_array(value)
        shape = tuple(value.shape())
        size = math.prod(shape) * spec.datatype.numpy.itemsize
        room = self._rooms.get(spec.name)
        if room is None or room.nbytes < size:
            room = self._rooms[spec.name] = self.allocate(size)
        if size:
            device_bytes = self._torch.from_dlpack(value).reshape(-1).view(self._torch.uint8)
            self._torch.from_numpy(room[:size]).copy_(device_bytes)
        return room[:size].view(spec.datatype.numpy).reshape(shape)


def allocate_page_locked(size: int, torch: ModuleType | None) -> Array:
    """Room for ``size`` bytes that begins on a page; ordinary room without torch."""
    if torch is None:
        return allocate_aligned(size)
    # Late: it imports torch, without which this backend works too.
    from preheat_backends.torch_programs.transfers import allocate_pinned

    return allocate_pinned(size)
