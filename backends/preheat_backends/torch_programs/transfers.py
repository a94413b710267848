"""A session's copies between the host and a CUDA device.

Not run on a GPU yet: see docs/support-matrix.md.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from preheat.tensors import Array, Tensors
from preheat_backends.torch_tensors import Rooms, to_torch


class Transfers:
    """Copies in a stream of the session's own, from and to page-locked memory. Belongs to the session's thread.

    The device copies by itself: while one session's thread waits for its stream, without Python's lock, another
    session's batch can be copied or computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._rooms = Rooms(allocate_pinned)

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is started in here is done when this is left, also by an exception.

        Until then the device reads the memory of inputs, which the server fills again for the next batch.
        """
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()

    def upload(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Inputs on the device, to be used in the stream. They are copies, which may be written to."""
        return {name: to_torch(array, self._device, borrow=False) for name, array in inputs.items()}

    def download(self, outputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs on the host, once the stream is done; good until the next download."""
        return {name: self._rooms.fetch(name, tensor) for name, tensor in outputs.items()}


def allocate_pinned(size: int) -> Array:
    """Room for ``size`` bytes of page-locked memory, which a GPU reads and writes by itself; begins on a page."""
    pinned: Array = torch.empty(max(1, size), dtype=torch.uint8, pin_memory=True).numpy()[:size]
    return pinned
