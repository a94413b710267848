"""The backend for torchao: a ``model.py`` whose layers are quantized, at load or before.

``options`` are its parameters. ``quantization`` quantizes linear layers one by one, ``pt2e`` the graph of a network,
with ``calibration`` to measure its activations on; ``checkpoint`` reads weights that are quantized already.
"""

from preheat_backends.torchao.backend import TorchaoBackend

__all__ = ["TorchaoBackend"]
