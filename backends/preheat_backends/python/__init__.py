"""The backend for models written in Python for Triton, run in the server's own process."""

from preheat_backends.python.backend import PythonBackend

__all__ = ["PythonBackend"]
