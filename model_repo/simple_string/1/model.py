"""The sum and the difference of whole numbers that are written as text."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance. It has nothing to prepare."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, in order. One that cannot be answered does not fail the others."""
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    try:
        first, second = (_numbers(request, name) for name in ("INPUT0", "INPUT1"))
    except ValueError as exc:
        error = pb_utils.TritonError(f"not a whole number: {exc}", pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=error)
    answers = {"OUTPUT0": first + second, "OUTPUT1": first - second}
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, _texts(array)) for name, array in answers.items() if name in wanted]
    )


def _numbers(request: Any, name: str) -> Any:
    """Return the tensor as Python's numbers, which have no largest."""
    texts = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return np.array([int(text) for text in texts.flat], np.object_).reshape(texts.shape)


def _texts(numbers: Any) -> Any:
    return np.array([str(number).encode() for number in numbers.flat], np.object_).reshape(numbers.shape)
