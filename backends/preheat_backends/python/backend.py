"""The plugin: models written in Python for Triton."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np

from preheat.backend import Backend, Hardware, Instance, Model, ModelSource, PartialConfig, Session, Signature
from preheat.errors import BackendMissing
from preheat_backends.python import interface
from preheat_backends.python.model_code import ModelCode

# For installed libraries that are written for Triton too. A model's own files get a module of their own.
interface.publish()


class PythonBackend(Backend):
    """Runs models written for Triton's Python backend as they are, each instance on its own thread."""

    def hardware(self) -> Hardware:
        """numpy, on the host and on the CUDA devices that torch sees where it is installed."""
        return Hardware(library=f"numpy {np.__version__}", devices=("cpu", *_gpus()))

    def complete(self, source: ModelSource) -> PartialConfig:
        """What the author decided in ``auto_complete_config``. Runs the model's code."""
        return replace(ModelCode(source).complete(), whole_requests=True)

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Make the model. Its code runs when instances are opened, once for each, as it does in Triton."""
        code = ModelCode(source)
        devices = self.hardware().devices
        if source.device not in devices:
            found = ", ".join(devices)
            raise BackendMissing(f"{source.name} asks for {source.device}; the backend 'python' found {found}")
        return PythonModel(code, signature)


class PythonModel(Model):
    """Code and a signature. Instances share nothing else: what a model keeps, each of its instances keeps."""

    def __init__(self, code: ModelCode, signature: Signature) -> None:
        self._code = code
        self._signature = signature

    def open(self, instance: Instance) -> Session:
        """Import the model's code for this instance alone, and initialize it."""
        return self._code.open(instance, self._signature)


def _gpus() -> list[str]:
    """The CUDA devices. torch takes a second to import, so it is asked only where there is something to see."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) or importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
