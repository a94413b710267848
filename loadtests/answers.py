"""Whether an answer is one: a wrong answer that comes fast is no throughput."""

import math
from typing import Any

import numpy as np
from loadtests.model import Model, Tensor
from tritonclient.utils import triton_to_np_dtype


class WrongAnswer(Exception):
    """An answer that came with the status OK and is not what the request asked for."""


def check_answer(response: Any, model: Model, *, request_id: str, rows: int | None) -> None:
    """Raise WrongAnswer unless a ModelInferResponse answers that request, with all outputs, in shapes that can be.

    ``rows`` is None for a model without a batch axis.
    """
    if response.id != request_id:
        raise WrongAnswer("the answer has the id of another request")
    names = [output.name for output in response.outputs]
    if sorted(names) != sorted(model.outputs):
        raise WrongAnswer(f"the answer has outputs {names}, not {list(model.outputs)}")
    if len(response.raw_output_contents) != len(names):
        raise WrongAnswer(f"{len(names)} outputs have {len(response.raw_output_contents)} raw contents")
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        _check_output(output, len(raw), model.outputs[output.name], rows)


def _check_output(output: Any, size: int, expected: Tensor, rows: int | None) -> None:
    dims = expected.dims if rows is None else (rows, *expected.dims)
    shape = tuple(output.shape)
    if len(shape) != len(dims) or any(wanted not in (-1, found) for found, wanted in zip(shape, dims, strict=True)):
        raise WrongAnswer(f"output {output.name!r} has shape {list(shape)}, not {list(dims)}")
    if output.datatype != expected.datatype:
        raise WrongAnswer(f"output {output.name!r} is {output.datatype}, not {expected.datatype}")
    if output.datatype != "BYTES" and size != math.prod(shape) * np.dtype(triton_to_np_dtype(output.datatype)).itemsize:
        raise WrongAnswer(f"output {output.name!r} of shape {list(shape)} has {size} bytes")
