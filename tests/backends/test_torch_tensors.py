"""Arrays to torch and back: without a copy where that was asked for, with one where it matters."""

import numpy as np
import pytest
import torch

from preheat.memory.staging import allocate_aligned
from preheat.tensors import Array, DataType
from preheat_backends.torch_tensors import DTYPES, Rooms, datatype_of, to_numpy, to_torch

CPU = torch.device("cpu")
BF16 = DataType.BF16.numpy

shapes = pytest.mark.parametrize("shape", [(), (0, 4), (2, 3)], ids=str)


def make_array(shape: tuple[int, ...], datatype: DataType, *, writable: bool) -> Array:
    array = np.ones(shape, datatype.numpy)
    array.setflags(write=writable)
    return array


@shapes
@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("datatype", DTYPES, ids=lambda datatype: datatype.value)
def test_a_borrowed_tensor_is_the_arrays_own_memory(shape: tuple[int, ...], writable: bool, datatype: DataType) -> None:
    array = make_array(shape, datatype, writable=writable)
    tensor = to_torch(array, CPU, borrow=True)
    assert tensor.shape == shape
    assert tensor.dtype is DTYPES[datatype]
    assert array.size == 0 or tensor.data_ptr() == array.ctypes.data
    assert array.flags.writeable is writable
    assert bool((tensor == 1).all())


@shapes
@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("datatype", [DataType.FP32, DataType.BF16], ids=lambda datatype: datatype.value)
def test_a_tensor_that_is_not_borrowed_may_be_written_to(
    shape: tuple[int, ...], writable: bool, datatype: DataType
) -> None:
    array = make_array(shape, datatype, writable=writable)
    to_torch(array, CPU, borrow=False).zero_()
    assert (array == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_array_shares_memory_unless_it_is_to_be_a_copy(dtype: torch.dtype) -> None:
    tensor = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    assert to_numpy(tensor, copy=False).ctypes.data == tensor.data_ptr()
    copied = to_numpy(tensor, copy=True)
    copied[...] = 0
    assert bool((tensor == 1).all())


def test_an_array_is_contiguous_whatever_the_tensor_was() -> None:
    array = to_numpy(torch.arange(6).reshape(2, 3).t(), copy=False)
    assert array.flags.c_contiguous
    assert array.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_lazily_negated_tensor_is_negated() -> None:
    imaginary = torch.tensor([1 + 2j]).conj().imag
    assert to_numpy(imaginary, copy=False).tolist() == [-2]


def test_every_datatype_but_strings_has_its_dtype() -> None:
    assert set(DataType) - DTYPES.keys() == {DataType.BYTES}
    assert {datatype_of(dtype) for dtype in DTYPES.values()} == DTYPES.keys()
    assert datatype_of(torch.complex64) is None


@shapes
@pytest.mark.parametrize("datatype", DTYPES, ids=lambda datatype: datatype.value)
def test_a_room_holds_what_was_fetched(shape: tuple[int, ...], datatype: DataType) -> None:
    fetched = Rooms(allocate_aligned).fetch("y", torch.ones(shape).to(DTYPES[datatype]))
    assert fetched.shape == shape
    assert fetched.dtype == datatype.numpy
    assert (fetched == 1).all()


def test_a_room_is_used_again_until_something_larger_comes() -> None:
    sizes: list[int] = []

    def allocate(size: int) -> Array:
        sizes.append(size)
        return allocate_aligned(size)

    rooms = Rooms(allocate)
    small, large = torch.arange(2.0), torch.arange(6.0).reshape(2, 3).t()
    first = rooms.fetch("y", small)
    assert rooms.fetch("y", small).ctypes.data == first.ctypes.data
    assert rooms.fetch("y", large).tolist() == large.tolist()
    assert rooms.fetch("y", small).tolist() == [0, 1]
    assert first.tolist() == [0, 1], "what is larger has come to another room"
    assert sizes == [8, 24]


def test_each_name_has_a_room_of_its_own() -> None:
    rooms, tensor = Rooms(allocate_aligned), torch.arange(3)
    one = rooms.fetch("one", tensor)
    rooms.fetch("other", tensor)[...] = 7
    assert one.tolist() == [0, 1, 2]
    assert tensor.tolist() == [0, 1, 2]


def test_what_is_lazily_negated_arrives_negated() -> None:
    imaginary = torch.tensor([1 + 2j]).conj().imag
    assert Rooms(allocate_aligned).fetch("y", imaginary).tolist() == [-2]


def test_an_axis_of_size_1_has_the_stride_that_packages_want() -> None:
    array = np.ones((3, 4), np.float32)[np.newaxis]
    assert array.strides[0] == 0
    for borrow in (True, False):
        assert to_torch(array, CPU, borrow=borrow).stride() == (12, 4, 1)
