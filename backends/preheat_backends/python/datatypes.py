"""Triton's names and numbers for datatypes: the names stand in configurations, the numbers are its C API's."""

from typing import Any

import numpy as np

from preheat.tensors import Array, DataType

# A number is a datatype's place here, from 1.
_NUMBERED = (
    DataType.BOOL,
    DataType.UINT8,
    DataType.UINT16,
    DataType.UINT32,
    DataType.UINT64,
    DataType.INT8,
    DataType.INT16,
    DataType.INT32,
    DataType.INT64,
    DataType.FP16,
    DataType.FP32,
    DataType.FP64,
    DataType.BYTES,
    DataType.BF16,
)
DATATYPES = {"TYPE_STRING" if each is DataType.BYTES else f"TYPE_{each.value}": each for each in _NUMBERED}
"""By the name that a configuration has for it."""

TRITON_STRING_TO_NUMPY: dict[str, type[Any]] = {name: each.numpy.type for name, each in DATATYPES.items()}


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """The numpy type for a name such as TYPE_FP32. Raises KeyError for another name."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> type[Any] | None:
    """The numpy type for one of Triton's numbers, None for another number."""
    return _NUMBERED[data_type - 1].numpy.type if 1 <= data_type <= len(_NUMBERED) else None


def numpy_to_triton_type(data_type: Any) -> int | None:
    """Triton's number for a numpy type or dtype, None for one that it has no name for."""
    try:
        return _NUMBERED.index(DataType.of(np.dtype(data_type))) + 1
    except KeyError:
        return None


def as_bytes(array: Array) -> Array:
    """``array``, of objects or of fixed-width strings, with each element as bytes.

    Text becomes UTF-8. What is neither text nor bytes becomes its ``str``, as in Triton. Raises UnicodeEncodeError for
    text that has no UTF-8.
    """
    result = np.empty(array.shape, np.object_)
    result.reshape(-1)[:] = [element if isinstance(element, bytes) else _encode(element) for element in array.flat]
    return result


def _encode(element: object) -> bytes:
    return bytes(element) if isinstance(element, bytearray | memoryview) else str(element).encode()
