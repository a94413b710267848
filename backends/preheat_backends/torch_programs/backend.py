"""The plugin that the torch backends derive from: finding the artifact, placing it on a device, loading it."""

from abc import abstractmethod
from functools import partial
from typing import ClassVar

import torch

from preheat.backend import Backend, Hardware, ModelSource, PartialConfig, Signature
from preheat.errors import BackendMissing, InvalidConfig
from preheat_backends.artifacts import Artifact, Kind, Takes, find_artifact
from preheat_backends.torch_programs.exported_program import load_exported_program, make_runnable, read_signature
from preheat_backends.torch_programs.program import NetworkProgram, Program
from preheat_backends.torch_programs.python_module import Prepare, load_python_module, load_weights
from preheat_backends.torch_programs.session import TorchModel
from preheat_backends.torch_tensors import DTYPES


class TorchBackend(Backend):
    """Runs a network with torch, in this process. A subclass says what it ``takes``, and makes a program of it.

    ``any_threads``, ``any_instances``: a program that was loaded for some number of them is good for others too.
    """

    takes: ClassVar[Takes]
    any_threads: ClassVar[bool] = True
    any_instances: ClassVar[bool] = True

    @abstractmethod
    def check(self, source: ModelSource) -> None:
        """Raise InvalidConfig for parameters that this backend does not take, whatever the artifact."""

    @abstractmethod
    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Load ``artifact`` onto ``device`` to serve ``signature``. Raises InvalidArtifact, InvalidConfig."""

    def hardware(self) -> Hardware:
        """torch, on the host and on the CUDA devices it sees."""
        devices = ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
        return Hardware(library=f"torch {torch.__version__}", devices=devices)

    def complete(self, source: ModelSource) -> PartialConfig:
        """The whole signature of an exported program; nothing of a ``model.py``, which only running it could tell."""
        self.check(source)
        artifact = self._find(source)
        if artifact.kind is Kind.TEXT:
            return PartialConfig()
        signature, _ = read_signature(load_exported_program(artifact.path), artifact.path)
        return signature.partial_config()

    def load(self, source: ModelSource, signature: Signature) -> TorchModel:
        """Load the weights onto the device, one copy for all instances."""
        self.check(source)
        device = _device(source)
        self._refuse_bytes(source, signature)
        program = self.build(self._find(source), source, signature=signature, device=device)
        if device.type == "cuda":
            # The weights were copied in this thread's stream; sessions run in others.
            torch.cuda.synchronize(device)
        threads = None if self.any_threads else source.threads
        instances = None if self.any_instances else source.instances
        return TorchModel(program, device, backend=self.takes.backend, threads=threads, instances=instances)

    def _find(self, source: ModelSource) -> Artifact:
        artifact = find_artifact(source, self.takes)
        if (artifact.kind is Kind.TEXT) != (artifact.path.suffix == ".py"):
            raise self.takes.refuse(artifact.path, artifact.kind)
        return artifact

    def _refuse_bytes(self, source: ModelSource, signature: Signature) -> None:
        for spec in (*signature.inputs, *signature.outputs):
            if spec.datatype not in DTYPES:
                raise InvalidConfig(
                    f"{source.config_path}: tensor {spec.name!r}: {spec.datatype.value}: torch has no such tensors; "
                    f"the backend {self.takes.backend!r} takes {', '.join(datatype.value for datatype in DTYPES)}"
                )


def load_module(
    artifact: Artifact, *, takes: Takes, signature: Signature, device: torch.device, prepare: Prepare = lambda _: None
) -> NetworkProgram:
    """The module of a ``model.py``, changed by ``prepare``."""
    outputs = tuple(spec.name for spec in signature.outputs)
    weights = partial(load_weights, backend=takes.backend)
    return load_python_module(artifact.path, outputs=outputs, device=device, weights=weights, prepare=prepare)


def load_program(
    artifact: Artifact, source: ModelSource, *, takes: Takes, signature: Signature, device: torch.device
) -> NetworkProgram:
    """The network of either kind of artifact, as it is."""
    if artifact.kind is Kind.TEXT:
        return load_module(artifact, takes=takes, signature=signature, device=device)
    exported = load_exported_program(artifact.path)
    return make_runnable(exported, artifact.path, source=source, signature=signature, device=device)


def _device(source: ModelSource) -> torch.device:
    device = torch.device(source.device)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device or driver"
        raise BackendMissing(f"{source.name} asks for {source.device}, but torch {torch.__version__} {why}")
    count = torch.cuda.device_count()
    if device.index >= count:
        raise BackendMissing(f"{source.name} asks for {source.device}, but torch sees {count} CUDA devices")
    return device
