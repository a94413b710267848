"""The backend for OpenVINO, on the CPU: ONNX models, and OpenVINO's own format.

``library`` imports OpenVINO in silence, ``signature`` reads what a model takes and gives, ``ir`` holds the two files of
OpenVINO's format against each other, ``indices`` finds what could crash, ``options`` says how a model is compiled,
``compiled`` compiles it, ``session`` is a thread's way in, and ``backend`` is the plugin.
"""

from preheat_backends.openvino.backend import OpenVinoBackend

__all__ = ["OpenVinoBackend"]
