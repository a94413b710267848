"""Requests, encoded before the test begins so that the client's own work does not blur it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from loadtests.model import Model
from loadtests.options import LoadOptions, LoadTestError
from loadtests.rows import Row, made_up_rows, read_rows
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

# How many different requests are made up, so that no cache anywhere flatters the model.
_VARIANTS = 8


@dataclass(frozen=True, slots=True)
class Payload:
    """A ModelInferRequest on the wire. ``rows`` is None for a model without a batch axis."""

    encoded: bytes
    id: str
    rows: int | None


def make_payloads(model: Model, options: LoadOptions) -> list[Payload]:
    """Every request there is to send. Raises LoadTestError if the model does not take what is asked for."""
    if unknown := options.shapes.keys() - model.inputs.keys():
        raise LoadTestError(f"--shape: {', '.join(sorted(unknown))}: the model takes {', '.join(model.inputs)}")
    if options.batch > max(1, model.max_batch_size):
        takes = f"at most {model.max_batch_size} rows" if model.max_batch_size else "no batches"
        raise LoadTestError(f"--batch: {options.batch}: model {model.name!r} takes {takes}")
    if options.input_data is None:
        rows = made_up_rows(model, options, count=_VARIANTS * options.batch)
    else:
        rows = read_rows(options.input_data, model, options)
    # Enough requests that every row is sent, and each equally often: they go round where a request ends in mid-file.
    count = len(rows) // math.gcd(len(rows), options.batch)
    return [
        _payload(model, [rows[(index * options.batch + offset) % len(rows)] for offset in range(options.batch)], index)
        for index in range(count)
    ]


def _payload(model: Model, rows: Sequence[Row], index: int) -> Payload:
    request = service_pb2.ModelInferRequest(model_name=model.name, model_version=model.version, id=str(index))
    if any(row.keys() != rows[0].keys() for row in rows):
        raise LoadTestError("--batch: rows of --input-data that would share a request differ in their inputs")
    for name in rows[0]:
        array = _joined([row[name] for row in rows], name) if model.max_batch_size else rows[0][name]
        request.inputs.add(name=name, datatype=model.inputs[name].datatype, shape=array.shape)
        request.raw_input_contents.append(_raw(array))
    return Payload(request.SerializeToString(), str(index), len(rows) if model.max_batch_size else None)


def _joined(arrays: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    if len({array.shape for array in arrays}) > 1:
        raise LoadTestError(f"--batch: rows of --input-data that would share a request differ in the shape of {name!r}")
    return np.stack(arrays)


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    # An empty tensor comes back as an array of none, others as one whose only element is the bytes.
    encoded: bytes = serialize_byte_tensor(array).item() if array.size else b""
    return encoded
