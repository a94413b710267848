"""The plugin: the artifacts of the eager backend, with options."""

from dataclasses import dataclass

import torch

from preheat.backend import ModelSource, Signature
from preheat_backends.artifacts import Artifact, Kind, Takes
from preheat_backends.hardware import require
from preheat_backends.torch_compile.compilation import compile_program
from preheat_backends.torch_compile.environment import describe_environment
from preheat_backends.torch_compile.options import CompileOptions, make_recipe
from preheat_backends.torch_programs.backend import TorchBackend, load_module, load_program
from preheat_backends.torch_programs.precision import CastProgram, Precision
from preheat_backends.torch_programs.program import Program


@dataclass(frozen=True, slots=True)
class Parameters(CompileOptions):
    """``dtype``: what the network computes in; None leaves its weights as they are."""

    dtype: Precision | None = None


class TorchCompileBackend(TorchBackend):
    """Compiles the network with inductor, one graph for each batch size that the server warms."""

    takes = Takes(
        backend="torch_compile",
        names=("model.pt2", "model.py"),
        kinds=frozenset({Kind.EXPORTED_PROGRAM, Kind.TEXT}),
        description="a torch.export program (.pt2) or model.py with model.safetensors",
    )
    # Kernels for the CPU are compiled for so many.
    any_threads = False

    def check(self, source: ModelSource) -> None:
        """Refuse unknown parameters, and values that they cannot have."""
        source.parse_parameters(Parameters)

    def environment(self, source: ModelSource) -> str:
        """Versions, the CPU and the compiler, and the GPU if it is on one."""
        return describe_environment(source)

    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Load the network. It is compiled later, by the calls that warm it."""
        parameters = source.parse_parameters(Parameters)
        recipe = make_recipe(source, signature, parameters, device=device)
        if parameters.dtype is None:
            program = load_program(artifact, source, takes=self.takes, signature=signature, device=device)
            return compile_program(program, source, signature, recipe)
        if artifact.kind is not Kind.TEXT:
            raise source.refuse(
                "dtype", parameters.dtype.value, "an exported program has its types in its graph; export it in this one"
            )
        require(source, parameters.dtype.arithmetic, "dtype", parameters.dtype.value)
        dtype = parameters.dtype.dtype
        program = load_module(
            artifact, takes=self.takes, signature=signature, device=device, prepare=lambda module: module.to(dtype)
        )
        return CastProgram(compile_program(program, source, signature, recipe), dtype, signature)
