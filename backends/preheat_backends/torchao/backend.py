"""The plugin: a ``model.py``, quantized, and compiled if that is asked for."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from preheat.backend import Hardware, ModelSource, PartialConfig, Signature
from preheat.errors import InvalidConfig
from preheat_backends.artifacts import Artifact, Kind, Takes
from preheat_backends.torch_compile.compilation import compile_program
from preheat_backends.torch_compile.environment import describe_environment
from preheat_backends.torch_compile.options import Recipe, make_recipe
from preheat_backends.torch_programs.backend import TorchBackend, load_module
from preheat_backends.torch_programs.dynamic_shapes import dynamic_shapes, example_inputs
from preheat_backends.torch_programs.precision import CastProgram
from preheat_backends.torch_programs.program import NetworkProgram, Program
from preheat_backends.torchao.calibration import read_calibration
from preheat_backends.torchao.checkpoint import check_quantized, load_checkpoint
from preheat_backends.torchao.graph import GraphProgram
from preheat_backends.torchao.layers import CannotQuantize
from preheat_backends.torchao.options import Options, parse, require_hardware
from preheat_backends.torchao.quantization import Plan, Quantization, quantize


class TorchaoBackend(TorchBackend):
    """Quantizes layers at every load, of weights that are read in floating point; or reads a quantized checkpoint."""

    takes = Takes(
        backend="torchao",
        names=("model.py",),
        kinds=frozenset({Kind.TEXT}),
        description="model.py with model.safetensors",
    )
    # As compiled kernels are, where it compiles.
    any_threads = False

    def check(self, source: ModelSource) -> None:
        """Refuse unknown parameters, and combinations that mean nothing."""
        parse(source)

    def hardware(self) -> Hardware:
        """torchao, where torch runs."""
        below = super().hardware()
        return Hardware(library=f"torchao {version('torchao')} on {below.library}", devices=below.devices)

    def complete(self, source: ModelSource) -> PartialConfig:
        """Nothing of the signature, but whether rows are independent of each other.

        They are, since activations are scaled row by row, or by what samples gave; but pt2e_dynamic scales them by the
        whole batch.
        """
        row_independent = parse(source).quantization is not Quantization.PT2E_DYNAMIC
        return dataclasses.replace(super().complete(source), row_independent=row_independent)

    def environment(self, source: ModelSource) -> str | None:
        """As for torch_compile, if it is compiled."""
        return describe_environment(source) if parse(source).parameters.compile else None

    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Load the module, and quantize it before it goes onto the device."""
        options = parse(source)
        require_hardware(source, options)
        compiled = options.parameters.compile
        recipe = make_recipe(source, signature, options.parameters, device=device) if compiled else None
        with _naming(artifact, source):
            if options.quantization.by_graph:
                program, recipe = self._build_graph(artifact, source, signature, options, recipe)
            elif options.quantization is Quantization.CHECKPOINT:
                program = self._load_quantized(artifact, source, signature, options, device)
            else:
                program = self._quantize_layers(artifact, source, signature, options, device)
        if recipe is not None:
            program = compile_program(program, source, signature, recipe)
        return program if options.dtype is None else CastProgram(program, options.dtype.dtype, signature)

    def _quantize_layers(
        self, artifact: Artifact, source: ModelSource, signature: Signature, options: Options, device: torch.device
    ) -> NetworkProgram:
        plan = Plan(
            options.quantization,
            device,
            only=options.only,
            skip=options.skip,
            group_size=options.group_size,
            int4_algorithm=options.int4_algorithm,
            compiled=options.parameters.compile,
            frozen=options.parameters.freezing,
        )

        def prepare(module: torch.nn.Module) -> None:
            module.to(options.dtype.dtype if options.dtype else None)
            quantize(module, plan, model=source.name)

        return load_module(artifact, takes=self.takes, signature=signature, device=device, prepare=prepare)

    def _load_quantized(
        self, artifact: Artifact, source: ModelSource, signature: Signature, options: Options, device: torch.device
    ) -> NetworkProgram:
        return load_checkpoint(
            artifact.path,
            outputs=tuple(spec.name for spec in signature.outputs),
            device=device,
            check=lambda module: check_quantized(module, source, options),
        )

    def _build_graph(
        self, artifact: Artifact, source: ModelSource, signature: Signature, options: Options, recipe: Recipe | None
    ) -> tuple[NetworkProgram, Recipe]:
        """The quantized graph, and what it is to be compiled with."""
        # Here, because it takes seconds to import, and other models have no use for it.
        from preheat_backends.torchao.pt2e import INDUCTOR_OPTIONS, quantize_pt2e

        assert recipe is not None, "parse() asks for compile"  # noqa: S101 - for the type checker
        for spec in signature.inputs:
            if spec.optional:
                raise CannotQuantize(f"becomes a graph of which no input can be optional, as {spec.name!r} is")
        static = options.quantization is Quantization.PT2E_STATIC
        samples = read_calibration(source, options.calibration, signature) if static else None
        dtype = options.dtype.dtype if options.dtype else None
        program = load_module(
            artifact, takes=self.takes, signature=signature, device=torch.device("cpu"),
            prepare=lambda module: module.to(dtype),
        )  # fmt: skip
        try:
            graph = quantize_pt2e(
                program.module,
                program.arrange(example_inputs(signature, source.buckets)),
                dynamic_shapes(signature),
                calibration=None if samples is None else [program.arrange(sample) for sample in samples],
                only=options.only,
                skip=options.skip,
            )
        except BaseException:
            program.close()
            raise
        inductor = {**recipe.inductor, **INDUCTOR_OPTIONS}
        return GraphProgram(program, graph), dataclasses.replace(recipe, inductor=inductor)


@contextmanager
def _naming(artifact: Artifact, source: ModelSource) -> Iterator[None]:
    """Say which model cannot be quantized, and where that is configured."""
    try:
        yield
    except CannotQuantize as exc:
        raise InvalidConfig(f"{source.config_path}: backend 'torchao': the module of {artifact.path} {exc}") from exc
