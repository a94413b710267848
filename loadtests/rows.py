"""What is sent: rows made up from a model's metadata, or read from a file of perf_analyzer's.

A row has one array for each input that is sent, without the batch axis.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from loadtests.model import Model, Tensor
from loadtests.options import LoadOptions, LoadTestError
from numpy.typing import NDArray
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

Row: TypeAlias = Mapping[str, NDArray[Any]]


def made_up_rows(model: Model, options: LoadOptions, *, count: int) -> list[Row]:
    """The same ``count`` rows each time: floats from 0 to 1, integers of 0 or 1, and words.

    So few integers, because they may be token ids, masks or flags, and any model takes these two.
    """
    generator = np.random.default_rng(0)
    shapes = {name: shape_of(tensor, options) for name, tensor in model.inputs.items()}
    return [
        {name: _made_up(tensor.datatype, shapes[name], generator) for name, tensor in model.inputs.items()}
        for _ in range(count)
    ]


def read_rows(path: Path, model: Model, options: LoadOptions) -> list[Row]:
    """The rows of a file ``{"data": [ROW, ...]}``. Raises LoadTestError, naming the file and the place in it.

    The file may have the answers too, as perf_analyzer's ``validation_data``: a load test does not compare values.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadTestError(f"--input-data: {path}: {error}") from error
    if not isinstance(document, dict) or document.keys() - {"validation_data"} != {"data"}:
        raise LoadTestError(f"--input-data: {path}: must be an object with 'data', and no more than 'validation_data'")
    entries = document["data"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise LoadTestError(f"--input-data: {path}: 'data' must be a list of objects, one for each row")
    return [_read_row(entry, model, options, where=f"{path}: data[{index}]") for index, entry in enumerate(entries)]


def shape_of(tensor: Tensor, options: LoadOptions) -> tuple[int, ...]:
    """The shape to send, without the batch axis. Raises LoadTestError for one that the model does not take."""
    shape = options.shapes.get(tensor.name)
    if shape is None:
        return tuple(options.variable_size if dimension == -1 else dimension for dimension in tensor.dims)
    if not _fits(shape, tensor.dims):
        raise LoadTestError(f"--shape: {tensor.name}: {list(shape)}: the model takes {list(tensor.dims)}")
    return shape


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(wanted in (-1, size) for size, wanted in zip(shape, dims, strict=True))


def _made_up(datatype: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    if datatype == "BYTES":
        words = generator.integers(10**6, size=shape)
        return np.array([b"%d" % word for word in words.flat], dtype=np.object_).reshape(shape)
    dtype = np.dtype(triton_to_np_dtype(datatype))
    # The 16 bits of BF16 are of no kind that numpy knows, and no integers either.
    if dtype.kind in "biu":
        return generator.integers(2, size=shape).astype(dtype)
    return generator.random(shape).astype(dtype)


def _read_row(entry: Mapping[str, Any], model: Model, options: LoadOptions, *, where: str) -> Row:
    if not model.inputs.keys() - model.optional <= entry.keys() <= model.inputs.keys():
        names = ", ".join(f"{name} (optional)" if name in model.optional else name for name in model.inputs)
        raise LoadTestError(f"--input-data: {where}: has {', '.join(entry) or 'nothing'}; the model takes {names}")
    row = {}
    for name, value in entry.items():
        try:
            row[name] = _read_tensor(value, model.inputs[name], options)
        # numpy has all of them for values that cannot be of the datatype.
        except (ValueError, TypeError, OverflowError) as error:
            raise LoadTestError(f"--input-data: {where}: {name}: {error}") from error
    return row


def _read_tensor(value: Any, tensor: Tensor, options: LoadOptions) -> NDArray[Any]:
    """A tensor in one of the forms ``[...]``, ``{"b64": ...}``, ``{"content": ... , "shape": [...]}``."""
    if isinstance(value, dict) and "shape" in value:
        shape = tuple(value["shape"])
        if not all(isinstance(size, int) for size in shape) or not _fits(shape, tensor.dims):
            raise ValueError(f"shape {list(shape)}: the model takes {list(tensor.dims)}")
    else:
        shape = shape_of(tensor, options)
    content = value.get("content", value) if isinstance(value, dict) else value
    if isinstance(content, list):
        flat = _listed(content, tensor.datatype)
    elif isinstance(content, dict) and isinstance(content.get("b64"), str):
        flat = _decoded(content["b64"], tensor.datatype)
    else:
        raise TypeError("must be a list of values, or an object with 'content' or 'b64'")
    if flat.size != np.prod(shape, dtype=int):
        raise ValueError(f"{flat.size} values do not make the shape {list(shape)}")
    return flat.reshape(shape)


def _listed(content: list[Any], datatype: str) -> NDArray[Any]:
    if datatype == "BYTES":
        return np.array([str(element).encode() for element in np.array(content, np.object_).flat], np.object_)
    dtype = np.dtype(triton_to_np_dtype(datatype))
    values = np.array(content)
    if dtype.kind in "biu" and values.dtype.kind not in "biu":
        raise ValueError(f"has values that are no {datatype}")
    return np.array(content, dtype).ravel()


def _decoded(text: str, datatype: str) -> NDArray[Any]:
    """The bytes of the tensor as they are on the wire: each element of BYTES after its length."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"b64: {error}") from error
    if datatype == "BYTES":
        elements: NDArray[Any] = deserialize_bytes_tensor(raw)
        return elements
    return np.frombuffer(raw, triton_to_np_dtype(datatype))
