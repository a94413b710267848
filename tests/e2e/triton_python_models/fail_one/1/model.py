"""Square roots. A request for the root of a negative number fails, and the others in its batch do not."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers with the number of requests in the batch too, so that a test can tell that it failed inside one."""

    def execute(self, requests):
        """Answer or refuse each request."""
        return [self._answer(request, len(requests)) for request in requests]

    def _answer(self, request, batch):
        value = pb_utils.get_input_tensor_by_name(request, "VALUE").as_numpy()
        if (value < 0).any():
            text = f"request {request.request_id()}: {value.min()} has no square root"
            error = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        root = pb_utils.Tensor("ROOT", np.sqrt(value))
        size = pb_utils.Tensor("BATCH", np.full(value.shape, batch, np.int32))
        return pb_utils.InferenceResponse([root, size])
