"""Arrays as tritonclient takes them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Rows: TypeAlias = NDArray[np.int64]


def infer_inputs(arrays: Arrays) -> list[Any]:
    """The inputs of a request, by name."""
    inputs = []
    for name, array in arrays.items():
        tensor = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def unique_rows(rows: int, *, start: int) -> Rows:
    """Rows of four numbers that no other ``start`` at least 4 * ``rows`` away has."""
    return np.arange(start, start + 4 * rows, dtype=np.int64).reshape(rows, 4)
