"""Tensors between the server and torch: datatypes, and host arrays in and out without a copy where that is safe."""

from collections.abc import Callable

import numpy as np
import torch

from preheat.tensors import Array, DataType
from preheat_backends.host_arrays import marked_writable

DTYPES: dict[DataType, torch.dtype] = {
    DataType.BOOL: torch.bool,
    DataType.UINT8: torch.uint8,
    DataType.UINT16: torch.uint16,
    DataType.UINT32: torch.uint32,
    DataType.UINT64: torch.uint64,
    DataType.INT8: torch.int8,
    DataType.INT16: torch.int16,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.FP16: torch.float16,
    DataType.FP32: torch.float32,
    DataType.FP64: torch.float64,
    DataType.BF16: torch.bfloat16,
}
"""BYTES has none: torch has no tensors of strings."""

_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_BF16 = DataType.BF16.numpy


def datatype_of(dtype: torch.dtype) -> DataType | None:
    """The protocol's name for ``dtype``, None for one that has none (complex, float8)."""
    return _DATATYPES.get(dtype)


def to_torch(array: Array, device: torch.device, *, borrow: bool) -> torch.Tensor:
    """``array`` on ``device``.

    With ``borrow`` a tensor on the host is ``array``'s own memory, read-only or not: whoever gets it must not write
    to it, and must not keep it longer than ``array``. Without, it is a copy.

    Elsewhere it is always a copy. If ``array`` is in page-locked memory the copy is only started, in the thread's
    stream: until that is done the array must stay as it is.
    """
    bits = array.view(np.int16) if array.dtype == _BF16 else array
    if 1 in bits.shape:
        # Of an axis of size 1 numpy leaves the stride at whatever it was; packages are particular about it.
        bits = bits.reshape(-1).reshape(bits.shape)
    host = torch.from_numpy(marked_writable(bits) if borrow or device.type != "cpu" else bits.copy())
    if array.dtype == _BF16:
        host = host.view(torch.bfloat16)
    return host.to(device, non_blocking=True)


def to_numpy(tensor: torch.Tensor, *, copy: bool) -> Array:
    """``tensor`` as a C-contiguous host array, sharing memory with a host tensor unless ``copy``.

    Waits for the device. Raises TypeError for a dtype that numpy has not.
    """
    host = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if copy:
        host = host.clone()
    if host.dtype == torch.bfloat16:
        array: Array = host.view(torch.int16).numpy().view(_BF16)
        return array
    return host.numpy()


class Rooms:
    """Memory on the host for tensors by name, each as large as its largest so far. Belongs to one thread.

    ``allocate`` makes room for a number of bytes: for tensors of a GPU page-locked memory, which it writes by itself.
    """

    def __init__(self, allocate: Callable[[int], Array]) -> None:
        self._allocate = allocate
        self._rooms: dict[str, Array] = {}

    def fetch(self, name: str, tensor: torch.Tensor) -> Array:
        """Start copying ``tensor`` here, and return where it will be once the thread's stream is done.

        It stays there until the next tensor of that name. Raises TypeError for a dtype that numpy has not.
        """
        # What is lazily conjugated or negated would be so on the host, before it has arrived.
        value = tensor.detach().resolve_conj().resolve_neg()
        size = value.numel() * value.element_size()
        host = torch.from_numpy(self._room(name, size)).view(value.dtype).reshape(value.shape)
        host.copy_(value, non_blocking=True)
        return to_numpy(host, copy=False)

    def _room(self, name: str, size: int) -> Array:
        room = self._rooms.get(name)
        if room is None or room.nbytes < size:
            room = self._rooms[name] = self._allocate(size)
        return room[:size]
