"""Where batches are put together: memory that a thread keeps from one batch to the next."""

import math
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from preheat.tensors import Array

# What vector instructions and engines' allocators are at home with; fewer, and some engines crash.
ALIGNMENT = 64
# Below this, looking where an array lies takes longer than copying it.
_WORTH_LOOKING = 2**14
# Makes room for a number of bytes, aligned: an array of uint8.
Allocate: TypeAlias = Callable[[int], Array]
# Makes room for an input: by its name, shape and dtype.
Room: TypeAlias = Callable[[str, tuple[int, ...], "np.dtype[Any]"], Array]


def allocate_aligned(size: int) -> Array:
    """Room for ``size`` bytes in ordinary memory, aligned to ALIGNMENT."""
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size]


def is_readable(array: Array) -> bool:
    """Whether an engine may read ``array`` where it lies: in one piece, in order, at a multiple of ALIGNMENT.

    False of small arrays, whose copy costs less than the answer.
    """
    if array.nbytes < _WORTH_LOOKING:
        return False
    address: int = array.__array_interface__["data"][0]
    return not address % ALIGNMENT and array.flags.c_contiguous


class Staging(threading.local):
    """One buffer for each input of a model, as large as the largest batch so far; each thread has its own.

    What :meth:`room` gave is good until the same thread asks for the same input again. So a batch has to be answered,
    and its answers encoded, before the thread begins the next: an answer may be a view of the question.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        # What was given last of each.
        self._rooms: dict[str, Array] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]", allocate: Allocate) -> Array:
        """Room for input ``name``, with whatever was there before; of BYTES, whose elements are objects, new room."""
        room = self._rooms.get(name)
        if room is not None and room.shape == shape and room.dtype is dtype:
            return room
        if dtype.kind == "O":
            return np.empty(shape, dtype)
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            buffer = self._buffers[name] = allocate(size)
        room = self._rooms[name] = buffer[:size].view(dtype).reshape(shape)
        return room
