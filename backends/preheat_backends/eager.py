"""The backend for plain torch: programs from torch.export, and modules built by a ``model.py``."""

from dataclasses import dataclass

import torch

from preheat.backend import ModelSource, Signature
from preheat_backends.artifacts import Artifact, Kind, Takes
from preheat_backends.torch_programs.backend import TorchBackend, load_program
from preheat_backends.torch_programs.program import Program


@dataclass(frozen=True, slots=True)
class Parameters:
    """This backend has none."""


class EagerBackend(TorchBackend):
    """Runs torch operators one by one, as PyTorch does by itself. The yardstick for everything that optimizes."""

    takes = Takes(
        backend="eager",
        names=("model.pt2", "model.py"),
        kinds=frozenset({Kind.EXPORTED_PROGRAM, Kind.TEXT}),
        description="a torch.export program (.pt2) or model.py with model.safetensors",
    )

    def check(self, source: ModelSource) -> None:
        """Refuse every parameter."""
        source.parse_parameters(Parameters)

    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Load the network, as it is."""
        return load_program(artifact, source, takes=self.takes, signature=signature, device=device)
