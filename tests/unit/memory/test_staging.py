"""Memory for batches: aligned, kept from one to the next, and each thread's own."""

import threading

import ml_dtypes
import numpy as np
import pytest
from tests.unit.builders import aligned

from preheat.memory.staging import ALIGNMENT, Staging, allocate_aligned, is_readable
from preheat.tensors import DataType


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, 2**20 + 1])
def test_room_is_aligned_and_as_large_as_asked_for(size: int) -> None:
    room = allocate_aligned(size)
    assert room.nbytes == size
    assert room.ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("datatype", DataType)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_room_has_the_shape_and_type_asked_for(datatype: DataType, shape: tuple[int, ...]) -> None:
    room = Staging().room("x", shape, datatype.numpy, allocate_aligned)
    assert (room.shape, room.dtype) == (shape, datatype.numpy)
    assert room.flags.writeable


def test_memory_is_kept_and_grows_only() -> None:
    staging = Staging()
    asked: list[int] = []

    def allocate(size: int) -> "np.typing.NDArray[np.uint8]":
        asked.append(size)
        return allocate_aligned(size)

    float32 = np.dtype(np.float32)
    for rows in (4, 2, 4, 1, 8, 3):
        assert staging.room("x", (rows, 2), float32, allocate).shape == (rows, 2)
    assert asked == [32, 64]
    places = {staging.room("x", (rows, 2), float32, allocate).ctypes.data for rows in (1, 8)}
    assert len(places) == 1
    # Of the same shape, in another type.
    half = staging.room("x", (8, 2), np.dtype(ml_dtypes.bfloat16), allocate)
    assert half.dtype == ml_dtypes.bfloat16
    assert staging.room("y", (8, 2), float32, allocate).ctypes.data not in places


def test_each_thread_has_memory_of_its_own() -> None:
    staging = Staging()
    places: list[int] = []

    def take() -> None:
        places.append(staging.room("x", (64,), np.dtype(np.int64), allocate_aligned).ctypes.data)

    take()
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    take()
    assert places[0] == places[2] != places[1]


def test_what_an_engine_can_read_where_it_lies_is_large_in_order_and_aligned() -> None:
    large = aligned(np.zeros((64, 256), np.float32))
    assert is_readable(large)
    assert not is_readable(large[:, ::2])
    assert not is_readable(large.T)
    assert not is_readable(aligned(np.zeros(2**15, np.uint8))[1:])
    assert not is_readable(large[:1])
