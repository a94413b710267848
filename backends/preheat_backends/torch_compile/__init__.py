"""The backend for torch.compile: the artifacts of ``eager``, compiled by inductor while the model is warmed."""

from preheat_backends.torch_compile.backend import TorchCompileBackend

__all__ = ["TorchCompileBackend"]
