"""The plugin: a ``model.py``, quantized, and compiled if that is asked for."""

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version

import torch

from preheat.backend import Hardware, ModelSource, PartialConfig, Signature
from preheat.errors import InvalidConfig
from preheat_backends.artifacts import Artifact, Kind, Takes
from preheat_backends.torch_compile.compilation import compile_program
from preheat_backends.torch_compile.environment import describe_environment
from preheat_backends.torch_compile.options import CompileOptions, make_recipe, set_options
from preheat_backends.torch_programs.backend import TorchBackend, load_module
from preheat_backends.torch_programs.precision import CastProgram, Precision
from preheat_backends.torch_programs.program import Program
from preheat_backends.torchao.quantization import CannotQuantize, Quantization, quantize


@dataclass(frozen=True, slots=True)
class Parameters(CompileOptions):
    """``dtype`` is that of all that is not quantized; ``only`` and ``skip`` are patterns of layers' names, with commas.

    The options of :class:`CompileOptions` are for ``compile``.
    """

    quantization: Quantization | None = None
    dtype: Precision | None = None
    only: str = "*"
    skip: str = ""
    compile: bool = False


class TorchaoBackend(TorchBackend):
    """Quantizes linear layers. Weights are read in floating point, and quantized on the host, at every load."""

    takes = Takes(
        backend="torchao",
        names=("model.py",),
        kinds=frozenset({Kind.TEXT}),
        description="model.py with model.safetensors",
    )

    def check(self, source: ModelSource) -> None:
        """Refuse unknown parameters, and combinations that mean nothing."""
        _parse(source)

    def hardware(self) -> Hardware:
        """torchao, where torch runs."""
        below = super().hardware()
        return Hardware(library=f"torchao {version('torchao')} on {below.library}", devices=below.devices)

    def complete(self, source: ModelSource) -> PartialConfig:
        """Nothing of the signature. Activations are scaled row by row, so rows are independent of each other."""
        return dataclasses.replace(super().complete(source), row_independent=True)

    def environment(self, source: ModelSource) -> str | None:
        """As for torch_compile, if it is compiled."""
        return describe_environment(source) if _parse(source)[0].compile else None

    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Load the module, and quantize it before it goes onto the device."""
        parameters, quantization = _parse(source)
        recipe = make_recipe(source, signature, parameters, device=device) if parameters.compile else None
        dtype = parameters.dtype.dtype if parameters.dtype else None

        def prepare(module: torch.nn.Module) -> None:
            module.to(dtype)
            try:
                quantize(
                    module,
                    quantization,
                    model=source.name,
                    only=_patterns(parameters.only),
                    skip=_patterns(parameters.skip),
                    compiled_for_cpu=parameters.compile and device.type == "cpu",
                )
            except CannotQuantize as exc:
                raise InvalidConfig(
                    f"{source.config_path}: backend 'torchao': the module of {artifact.path} {exc}"
                ) from exc

        program = load_module(artifact, takes=self.takes, signature=signature, device=device, prepare=prepare)
        if recipe is not None:
            program = compile_program(program, source, signature, recipe)
        return program if dtype is None else CastProgram(program, dtype, signature)


def _parse(source: ModelSource) -> tuple[Parameters, Quantization]:
    parameters = source.parse_parameters(Parameters)
    if parameters.quantization is None:
        allowed = ", ".join(member.value for member in Quantization)
        raise InvalidConfig(f"{source.config_path}: parameters: quantization: not set; must be one of {allowed}")
    if parameters.dtype is Precision.FP16:
        raise source.refuse("dtype", parameters.dtype.value, "must be one of fp32, bf16 beside 8-bit integers")
    if not parameters.compile:
        for name, value in set_options(parameters):
            raise source.refuse(name, value, "goes with parameter compile: true only")
    return parameters, parameters.quantization


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
