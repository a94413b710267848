"""Answers each row with itself, within Triton's Python backend."""

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # there is one within Triton only


class TritonPythonModel:
    """What Triton's Python backend makes an instance of."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        return [_answer(pb_utils.get_input_tensor_by_name(request, "INPUT0")) for request in requests]


def _answer(tensor: Any) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())])
