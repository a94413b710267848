"""The backend for ONNX Runtime: ONNX graphs on the CPU, on a CUDA device, or through TensorRT."""

from preheat_backends.onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
