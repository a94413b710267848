"""The plugin: which artifact it is, and on which device it goes."""

from dataclasses import dataclass

import torch

from preheat.backend import Backend, Hardware, Model, ModelSource, PartialConfig, Signature
from preheat.errors import BackendMissing, InvalidConfig
from preheat_backends.artifacts import Artifact, Kind, Takes, find_artifact
from preheat_backends.eager.exported_program import load_exported_program, prepare, read_signature
from preheat_backends.eager.program import Program
from preheat_backends.eager.python_module import load_python_module
from preheat_backends.eager.session import EagerModel
from preheat_backends.torch_tensors import DTYPES

_TAKES = Takes(
    backend="eager",
    names=("model.pt2", "model.py"),
    kinds=frozenset({Kind.EXPORTED_PROGRAM, Kind.TEXT}),
    description="a torch.export program (.pt2) or model.py with model.safetensors",
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """This backend has none."""


class EagerBackend(Backend):
    """Runs torch operators one by one, as PyTorch does by itself. The yardstick for everything that optimizes."""

    def hardware(self) -> Hardware:
        """torch, on the host and on the CUDA devices it sees."""
        devices = ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
        return Hardware(library=f"torch {torch.__version__}", devices=devices)

    def complete(self, source: ModelSource) -> PartialConfig:
        """The whole signature of an exported program; nothing of a ``model.py``, which only running it could tell."""
        source.parse_parameters(Parameters)
        artifact = _find(source)
        if artifact.kind is Kind.TEXT:
            return PartialConfig()
        signature, _ = read_signature(load_exported_program(artifact.path), artifact.path)
        return signature.partial_config()

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Load the weights onto the device, one copy for all instances."""
        source.parse_parameters(Parameters)
        device = _device(source)
        _refuse_bytes(source, signature)
        program = _load_program(_find(source), source=source, signature=signature, device=device)
        if device.type == "cuda":
            # The weights were copied in this thread's stream; sessions run in others.
            torch.cuda.synchronize(device)
        return EagerModel(program, device)


def _load_program(artifact: Artifact, *, source: ModelSource, signature: Signature, device: torch.device) -> Program:
    if artifact.kind is Kind.TEXT:
        outputs = tuple(spec.name for spec in signature.outputs)
        return load_python_module(artifact.path, outputs=outputs, device=device)
    exported = load_exported_program(artifact.path)
    return prepare(exported, artifact.path, source=source, signature=signature, device=device)


def _find(source: ModelSource) -> Artifact:
    artifact = find_artifact(source, _TAKES)
    if (artifact.kind is Kind.TEXT) != (artifact.path.suffix == ".py"):
        raise _TAKES.refuse(artifact.path, artifact.kind)
    return artifact


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


def _refuse_bytes(source: ModelSource, signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.datatype not in DTYPES:
            raise InvalidConfig(
                f"{source.config_path}: tensor {spec.name!r}: {spec.datatype.value}: torch has no such tensors; "
                f"the backend 'eager' takes {', '.join(datatype.value for datatype in DTYPES)}"
            )
