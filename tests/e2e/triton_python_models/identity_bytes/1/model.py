"""Answers BYTES with themselves."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Has neither initialize nor finalize, as a model may."""

    def execute(self, requests):
        """One response to each request."""
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            output = pb_utils.Tensor("OUTPUT0", tensor.as_numpy())
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
