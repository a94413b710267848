"""The backend for plain torch: programs from torch.export, and modules built by a ``model.py``."""

from preheat_backends.eager.backend import EagerBackend

__all__ = ["EagerBackend"]
