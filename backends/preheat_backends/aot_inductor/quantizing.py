"""A network quantized on the way into a package: what torchao makes of it, and what it has to be compiled with."""

import enum
from dataclasses import replace

import torch

from preheat.errors import BackendMissing, InvalidArtifact
from preheat_backends.aot_inductor.model_folder import ModelFolder
from preheat_backends.aot_inductor.packaging import InstructionSet, Recipe
from preheat_backends.aot_inductor.tracing import make_inputs
from preheat_backends.torch_programs.dynamic_shapes import dynamic_shapes, example_sizes
from preheat_backends.torch_programs.program import Arguments


class Quantization(enum.Enum):
    """Activations measured beforehand on samples, or at each call, by the whole batch."""

    PT2E_STATIC = "pt2e_static"
    PT2E_DYNAMIC = "pt2e_dynamic"


def quantize(
    served: torch.nn.Module, model: ModelFolder, quantization: Quantization, *, calibration: str, recipe: Recipe
) -> tuple[torch.nn.Module, Recipe]:
    """``served`` in 8-bit integers, and ``recipe`` with what that needs.

    ``calibration`` is the name of a file of samples. Raises BackendMissing, InvalidArtifact.
    """
    try:
        # Late, and here only: torchao is an extra of its own.
        from preheat_backends.torchao.calibration import read_calibration
        from preheat_backends.torchao.layers import CannotQuantize
        from preheat_backends.torchao.pt2e import INDUCTOR_OPTIONS, quantize_pt2e
    except ImportError as exc:
        raise BackendMissing("--quantization needs torchao: pip install 'preheat[torchao]'") from exc
    signature = model.signature
    samples = None
    if quantization is Quantization.PT2E_STATIC:
        names = [spec.name for spec in signature.inputs]
        read = read_calibration(model.source, calibration, signature)
        samples = [Arguments(tuple(sample[name] for name in names)) for sample in read]
    example = make_inputs(signature, example_sizes(signature), torch.device("cpu"))
    try:
        # For other CPUs than this one: what does not overflow on any.
        narrow = None if recipe.instruction_set is InstructionSet.NATIVE else True
        # As the inputs of Served, all in one.
        shapes = (tuple(dynamic_shapes(signature).values()),)
        graph = quantize_pt2e(served, Arguments(example), shapes, calibration=samples, narrow_weights=narrow)
    except CannotQuantize as exc:
        raise InvalidArtifact(f"the network {exc}") from exc
    row_independent = quantization is Quantization.PT2E_STATIC
    return graph, replace(recipe, row_independent=row_independent, options={**recipe.options, **INDUCTOR_OPTIONS})
