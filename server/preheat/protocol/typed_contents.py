"""Typed contents: tensors as repeated numbers, each datatype in the field that the protocol has for it."""

from collections.abc import Sequence

import numpy as np

from preheat.errors import InvalidRequest
from preheat.protocol import grpc_service_pb2 as pb
from preheat.tensors import Array

# The typed field that carries each datatype. FP16 and BF16 have none: they must be raw.
_CONTENTS = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int8),
    "INT16": ("int_contents", np.int16),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint8),
    "UINT16": ("uint_contents", np.uint16),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}


def decode_contents(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> Array:
    """The data of an input that has it in typed contents, as a flat array. Raises InvalidRequest."""
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if not filled and 0 not in tensor.shape:
        raise no_data(tensor.name, model)
    if tensor.datatype not in _CONTENTS:
        allowed = "raw_input_contents" if tensor.datatype in ("FP16", "BF16") else f"one of {', '.join(_CONTENTS)}"
        raise InvalidRequest(
            f"input '{tensor.name}' for model '{model}' of datatype '{tensor.datatype}' has no typed contents; "
            f"use {allowed}"
        )
    field, dtype = _CONTENTS[tensor.datatype]
    for other in filled:
        if other != field:
            raise InvalidRequest(
                f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}' in {other}: "
                f"datatype '{tensor.datatype}' goes into {field}"
            )
    return _flat_array(getattr(tensor.contents, field), dtype)


def _flat_array(values: Sequence[object], dtype: type[np.generic]) -> Array:
    if dtype is np.object_:
        array = np.empty(len(values), np.object_)
        array[:] = list(values)
        return array
    if issubclass(dtype, np.integer):
        # Small integers ride in 32-bit fields; what does not fit is cut to the low bits, as Triton does.
        wide = np.uint64 if issubclass(dtype, np.unsignedinteger) else np.int64
        return np.fromiter(values, wide, len(values)).astype(dtype)
    return np.fromiter(values, dtype, len(values))


def no_data(tensor: str, model: str) -> InvalidRequest:
    """A request says nothing of what is in an input: as Triton words it."""
    return InvalidRequest(f"unable to find data for input tensor '{tensor}' for model '{model}' in request.")
