"""The backend for TorchScript archives, written by ``torch.jit.save``. PyTorch has deprecated the format.

``archive`` loads the file, ``call`` matches it with what is declared, ``program`` runs it, ``backend`` is the plugin.
"""

from preheat_backends.torchscript.backend import TorchScriptBackend

__all__ = ["TorchScriptBackend"]
