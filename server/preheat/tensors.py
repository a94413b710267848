"""Tensors and their datatypes, as clients name them and as numpy holds them.

Host tensors are ``numpy.ndarray``; BF16 is ``ml_dtypes.bfloat16``; BYTES is an object array whose elements are
``bytes``.
"""

import enum
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
Buffer: TypeAlias = bytes | memoryview


class Loan(NamedTuple):
    """A raw payload of ``size`` bytes in a client's memory, which has to be copied before anyone looks at it.

    ``copy`` may take its time, and raises ExecutionFailed: it is for when the request is known to fit its model.
    """

    size: int
    copy: Callable[[], bytes]


class DataType(enum.Enum):
    """A tensor's element type. The value is its name in KServe v2 metadata (protocol: "Tensor Data Types")."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of host arrays that hold this type."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int | None:
        """Bytes per element, or None for BYTES, whose elements vary."""
        return None if self is DataType.BYTES else _NUMPY[self].itemsize

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> Self:
        """The type that holds ``dtype``.

        Raises KeyError for one that has no name in the protocol (complex, datetime).
        """
        return cls("BYTES") if dtype.kind in "OSU" else cls(_NAMES[dtype])


_NUMPY: dict[DataType, np.dtype[Any]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype(np.uint8),
    DataType.UINT16: np.dtype(np.uint16),
    DataType.UINT32: np.dtype(np.uint32),
    DataType.UINT64: np.dtype(np.uint64),
    DataType.INT8: np.dtype(np.int8),
    DataType.INT16: np.dtype(np.int16),
    DataType.INT32: np.dtype(np.int32),
    DataType.INT64: np.dtype(np.int64),
    DataType.FP16: np.dtype(np.float16),
    DataType.FP32: np.dtype(np.float32),
    DataType.FP64: np.dtype(np.float64),
    DataType.BF16: np.dtype(ml_dtypes.bfloat16),
    DataType.BYTES: np.dtype(np.object_),
}
_LENGTH = struct.Struct("<I")
_NAMES = {dtype: datatype.value for datatype, dtype in _NUMPY.items()}


def zeros(datatype: DataType, shape: tuple[int, ...]) -> Array:
    """An array of zeros; of BYTES, of empty elements."""
    if datatype is DataType.BYTES:
        return np.full(shape, b"", np.object_)
    return np.zeros(shape, datatype.numpy)


def view_raw(datatype: DataType, shape: tuple[int, ...], data: Buffer) -> Array:
    """View ``data``, in the binary tensor format, as an array of ``shape``.

    The format is row-major and little-endian without padding; a BYTES element is its length as 4 bytes followed by that
    many bytes (KServe v2, "Raw Tensor Contents"). The result is read-only, and lies where ``data`` does, which need not
    be where its type may lie; BYTES are copied. Raises ValueError when ``data`` does not hold exactly the elements of
    ``shape``.
    """
    if datatype is DataType.BYTES:
        return _split_elements(data, math.prod(shape)).reshape(shape)
    expected = math.prod(shape) * datatype.numpy.itemsize
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes, got {len(data)}")
    if datatype is DataType.BOOL and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        # An engine may take a byte for a count: ONNX Runtime sizes buffers by the sum of such a mask.
        raise ValueError("a BOOL must be 0 or 1")
    return np.frombuffer(data, datatype.numpy).reshape(shape)


def from_raw(datatype: DataType, shape: tuple[int, ...], data: Buffer) -> Array:
    """As :func:`view_raw`, but a copy where the bytes do not lie as their type has to."""
    array = view_raw(datatype, shape, data)
    return array if array.flags.aligned else array.copy()


def _split_elements(data: Buffer, count: int) -> Array:
    """The ``count`` length-prefixed elements of ``data``."""
    elements: list[bytes] = []
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        if len(elements) == count:
            raise ValueError(f"expected {count} elements, got more: bytes follow the last one, from byte {offset} on")
        start = offset + _LENGTH.size
        if start > len(view):
            raise ValueError(f"element {len(elements)}: its length is cut off at byte {offset}")
        offset = start + _LENGTH.unpack_from(view, offset)[0]
        if offset > len(view):
            raise ValueError(f"element {len(elements)}: {offset - start} bytes announced, {len(view) - start} there")
        elements.append(bytes(view[start:offset]))
    if len(elements) != count:
        raise ValueError(f"expected {count} elements, got {len(elements)}")
    array = np.empty(count, np.object_)
    array[:] = elements
    return array


def raw_size(array: Array) -> int:
    """How many bytes :func:`to_buffer` makes of ``array``."""
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(_LENGTH.size + len(element) for element in array.flat)


def to_buffer(array: Array) -> bytes | memoryview:
    """The binary tensor format of ``array``, the inverse of :func:`from_raw`: a view of it where it lies in that order.

    An array that does not, or of BYTES, is copied.
    """
    if array.dtype.kind != "O":
        # By way of bytes: not every dtype, bfloat16 for one, can be told through the buffer protocol.
        return array.ravel().view(np.uint8).data
    return b"".join(part for element in array.flat for part in (_LENGTH.pack(len(element)), element))


def to_raw(array: Array) -> bytes:
    """As :func:`to_buffer`, but a copy in any case."""
    return bytes(to_buffer(array))
