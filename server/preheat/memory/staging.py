"""Where batches are put together: memory that a thread keeps from one batch to the next."""

import math
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from preheat.tensors import Array

# What vector instructions and engines' allocators are at home with; fewer, and some engines crash.
ALIGNMENT = 64
# Makes room for a number of bytes, aligned: an array of uint8.
Allocate: TypeAlias = Callable[[int], Array]
# Makes room for an input: by its name, shape and dtype.
Room: TypeAlias = Callable[[str, tuple[int, ...], "np.dtype[Any]"], Array]


def allocate_aligned(size: int) -> Array:
    """Room for ``size`` bytes in ordinary memory, aligned to ALIGNMENT."""
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size]


def is_aligned(array: Array) -> bool:
    """Whether ``array`` lies in one piece, in order, at a multiple of ALIGNMENT."""
    address: int = array.__array_interface__["data"][0]
    return not address % ALIGNMENT and array.flags.c_contiguous


class Staging(threading.local):
    """One buffer for each input of a model, as large as the largest batch so far; each thread has its own.

    What :meth:`room` gave is good until the same thread asks for the same input again. So a batch has to be answered,
    and its answers encoded, before the thread begins the next: an answer may be a view of the question.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]", allocate: Allocate) -> Array:
        """Room for input ``name``, with whatever was there before; of BYTES, whose elements are objects, new room."""
        if dtype.kind == "O":
            return np.empty(shape, dtype)
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            buffer = self._buffers[name] = allocate(size)
        return buffer[:size].view(dtype).reshape(shape)
