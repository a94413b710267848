"""The plugin: archives, loaded, frozen, and matched with the configuration."""

import logging
from dataclasses import dataclass

import torch

from preheat.backend import ModelSource, PartialConfig, Signature
from preheat_backends.artifacts import Artifact, Kind, Takes
from preheat_backends.torch_programs.backend import TorchBackend
from preheat_backends.torch_programs.program import Program
from preheat_backends.torchscript.archive import load_archive
from preheat_backends.torchscript.call import match_call
from preheat_backends.torchscript.program import ScriptProgram, rows_depend

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parameters:
    """``freeze``: weights become constants of the graph. ``optimize_for_inference``: and oneDNN's, where it pays."""

    freeze: bool = True
    optimize_for_inference: bool = False


class TorchScriptBackend(TorchBackend):
    """Runs archives of ``torch.jit.trace`` and ``torch.jit.script``."""

    takes = Takes(
        backend="torchscript",
        names=("model.pt",),
        kinds=frozenset({Kind.TORCHSCRIPT}),
        description="a TorchScript archive (.pt)",
    )

    def check(self, source: ModelSource) -> None:
        """Refuse unknown parameters, and optimizing what is not frozen."""
        _parse(source)

    def complete(self, source: ModelSource) -> PartialConfig:
        """Whether rows depend on each other; an archive has no shapes and types to tell."""
        self.check(source)
        archive = load_archive(self._find(source).path, torch.device("cpu"), freeze=False, optimize=False)
        return PartialConfig(row_independent=not rows_depend(archive))

    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Load the archive, in eval mode, and freeze it."""
        parameters = _parse(source)
        module = load_archive(
            artifact.path, device, freeze=parameters.freeze, optimize=parameters.optimize_for_inference
        )
        call = match_call(module, artifact.path, source, signature)
        _log.warning(
            "%s: TorchScript is deprecated by PyTorch and will not be developed further; export the network with "
            "torch.export, and serve it with the backend eager, torch_compile or aot_inductor",
            source.name,
        )
        return ScriptProgram(module, call, fuses=device.type == "cuda")


def _parse(source: ModelSource) -> Parameters:
    parameters = source.parse_parameters(Parameters)
    if parameters.optimize_for_inference and not parameters.freeze:
        raise source.refuse("optimize_for_inference", "true", "goes with freeze: true only")
    return parameters
