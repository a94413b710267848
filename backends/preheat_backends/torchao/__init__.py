"""The backend for torchao: a ``model.py`` whose linear layers are quantized to 8-bit integers at load."""

from preheat_backends.torchao.backend import TorchaoBackend

__all__ = ["TorchaoBackend"]
