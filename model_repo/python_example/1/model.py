"""Counts the characters and the words of texts.

A model written for Triton's Python backend, which runs there as it does here: a class TritonPythonModel that says what
it takes and gives, and answers requests, several at a time if they came together.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_MAX_BATCH = 32


class TritonPythonModel:
    """One instance. The server calls it from one thread, which is its own."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Declare one text per row, two numbers for it, and that requests may be joined."""
        auto_complete_model_config.add_input({"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]})
        auto_complete_model_config.add_output({"name": "CHARACTERS", "data_type": "TYPE_INT32", "dims": [1]})
        auto_complete_model_config.add_output({"name": "WORDS", "data_type": "TYPE_INT32", "dims": [1]})
        auto_complete_model_config.set_max_batch_size(_MAX_BATCH)
        auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration: here for the type of the answers, elsewhere for parameters of one's own."""
        config = json.loads(args["model_config"])
        output = pb_utils.get_output_config_by_name(config, "CHARACTERS")
        self._dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        pb_utils.Logger.log_info(f"{args['model_name']} counts in {output['data_type']}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, in order. One that cannot be answered does not fail the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        try:
            texts = [row[0].decode() for row in rows]
        except UnicodeDecodeError as exc:
            error = pb_utils.TritonError(f"TEXT is not UTF-8: {exc}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        counts = {"CHARACTERS": [len(text) for text in texts], "WORDS": [len(text.split()) for text in texts]}
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, np.array(numbers, self._dtype).reshape(-1, 1))
                for name, numbers in counts.items()
                if name in wanted
            ]
        )
