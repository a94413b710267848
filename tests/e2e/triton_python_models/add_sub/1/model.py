"""The sum and the difference of two vectors, scaled. The configuration is completed here."""

import json

import arithmetic
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Uses most of what a model without tricks uses."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Declare two inputs, two outputs and batches of up to four rows."""
        for name in ("INPUT0", "INPUT1"):
            auto_complete_model_config.add_input({"name": name, "data_type": "TYPE_FP32", "dims": [4]})
        for name in ("SUM", "DIFFERENCE"):
            auto_complete_model_config.add_output({"name": name, "data_type": "TYPE_FP32", "dims": [4]})
        auto_complete_model_config.set_max_batch_size(4)
        auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args):
        """Read what the configuration says."""
        config = json.loads(args["model_config"])
        self.scale = float(config["parameters"]["scale"]["string_value"])
        output = pb_utils.get_output_config_by_name(config, "SUM")
        self.dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        pb_utils.Logger.log_info(f"{args['model_name']} is ready on {args['model_instance_kind']}")

    def execute(self, requests):
        """Compute what each request asks for, and nothing else."""
        return [self._answer(request) for request in requests]

    def finalize(self):
        """Forget."""
        del self.scale

    def _answer(self, request):
        first = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        second = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
        # A model may write to its inputs.
        first *= self.scale
        second *= self.scale
        tensors = [
            pb_utils.Tensor(name, arithmetic.OPERATIONS[name](first, second).astype(self.dtype))
            for name in sorted(request.requested_output_names())
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)
