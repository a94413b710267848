"""The binary tensor format, there and back, for every datatype."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preheat.tensors import DataType, from_raw, to_raw

FIXED = [datatype for datatype in DataType if datatype is not DataType.BYTES]
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@given(st.sampled_from(FIXED), shapes, st.data(), st.integers(0, 9))
def test_bytes_become_an_array_and_the_same_bytes_again_at_any_alignment(
    datatype: DataType, shape: tuple[int, ...], data: st.DataObject, offset: int
) -> None:
    size = int(np.prod(shape, dtype=int)) * (datatype.itemsize or 0)
    element = st.integers(0, 1 if datatype is DataType.BOOL else 255)
    raw = bytes(data.draw(st.lists(element, min_size=size, max_size=size)))
    array = from_raw(datatype, shape, memoryview(bytes(offset) + raw)[offset:])
    assert (array.dtype, array.shape) == (datatype.numpy, shape)
    assert array.flags.aligned
    assert to_raw(array) == raw


def test_a_byte_that_is_no_boolean_is_refused_since_engines_may_count_with_it() -> None:
    with pytest.raises(ValueError, match="a BOOL must be 0 or 1"):
        from_raw(DataType.BOOL, (3,), b"\x00\x01\xff")


@given(hnp.arrays(np.object_, shapes, elements=st.binary(max_size=5)))
def test_elements_of_any_bytes_survive_the_way_there_and_back(
    array: np.ndarray[tuple[int, ...], np.dtype[np.object_]],
) -> None:
    back = from_raw(DataType.BYTES, array.shape, to_raw(array))
    assert (back.shape, back.tolist()) == (array.shape, array.tolist())


@given(st.sampled_from(DataType), shapes, st.binary(max_size=40))
def test_bytes_that_are_not_exactly_the_elements_raise_a_value_error(
    datatype: DataType, shape: tuple[int, ...], data: bytes
) -> None:
    try:
        array = from_raw(datatype, shape, data)
    except ValueError:
        return
    assert array.shape == shape
    assert to_raw(array) == data


def test_an_element_is_its_length_in_four_little_endian_bytes_and_then_itself() -> None:
    array = np.array([b"ab", b"", b"\0"], np.object_)
    assert to_raw(array) == b"\x02\0\0\0ab" + b"\0\0\0\0" + b"\x01\0\0\0\0"


def test_a_slice_that_is_not_contiguous_is_written_row_by_row() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert to_raw(array[:, ::2]) == np.array([0, 2, 3, 5], np.int16).tobytes()
    assert to_raw(array.T) == np.array([0, 3, 1, 4, 2, 5], np.int16).tobytes()


def test_what_is_there_is_viewed_read_only_where_it_is_aligned() -> None:
    array = from_raw(DataType.FP32, (2,), bytes(8))
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize("datatype", DataType)
def test_every_datatype_is_the_one_of_its_own_arrays(datatype: DataType) -> None:
    assert DataType.of(datatype.numpy) is datatype
    assert datatype.itemsize == (None if datatype is DataType.BYTES else datatype.numpy.itemsize)


def test_texts_are_bytes_and_bfloat16_is_its_own() -> None:
    assert DataType.of(np.dtype("S3")) is DataType.BYTES
    assert DataType.of(np.dtype("U3")) is DataType.BYTES
    assert DataType.BF16.numpy == np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", [np.complex64, "datetime64[s]"])
def test_a_dtype_without_a_name_in_the_protocol_is_none_of_ours(dtype: str) -> None:
    with pytest.raises(KeyError):
        DataType.of(np.dtype(dtype))
