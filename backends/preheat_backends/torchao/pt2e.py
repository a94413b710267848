"""A network as a graph whose layers compute in 8-bit integers, with the kernels that oneDNN has for x86 CPUs.

"PT2E" is torchao's name for it. The graph takes and gives what the network does, and says where to quantize and to
dequantize; it is inductor, with freezing, that makes kernels of 8-bit integers of that. As a graph alone it is slow.
"""

import dataclasses
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch._inductor.config
from torch._dynamo.convert_frame import compile_lock

from preheat_backends.torch_programs.program import Arguments, first_line
from preheat_backends.torchao.kernels import NARROW, saturates
from preheat_backends.torchao.layers import EVERYTHING, CannotQuantize, choose
from preheat_backends.torchao.quiet import without_noise

_inductor: Any = torch._inductor.config  # to the type checker, it has no patch()
# The quantizer's module sets a pass of inductor's for all that this thread compiles from then on; see INDUCTOR_OPTIONS.
with without_noise(), _inductor.patch(pre_grad_custom_pass=None):
    from torchao.quantization.pt2e.inductor_passes.x86 import quant_lift_up
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

# Torch's own, about its own code.
warnings.filterwarnings(
    "ignore", message="To copy construct from a tensor", module=r"torch\._inductor\.mkldnn_lowerings"
)

# What such graphs are to be compiled with, beside freezing.
INDUCTOR_OPTIONS = {"pre_grad_custom_pass": quant_lift_up}

_LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
_KIND = "torch.nn.Linear, Conv1d or Conv2d"
_DEQUANTIZED = torch.ops.quantized_decomposed.dequantize_per_channel.default


def quantize_pt2e(
    module: torch.nn.Module,
    arguments: Arguments,
    dynamic_shapes: Any,
    *,
    calibration: Iterable[Arguments] | None,
    only: Sequence[str] = EVERYTHING,
    skip: Sequence[str] = (),
    narrow_weights: bool | None = None,
) -> torch.fx.GraphModule:
    """The graph of ``module``, quantized. ``module``, in eval mode and fp32, stays as it is; they share weights.

    ``arguments`` and ``dynamic_shapes`` are as torch.export takes them. ``calibration`` is what activations are
    measured on; None: they are measured at each call, by the whole tensor, so an answer depends on its batch peers.
    Layers whose names fit a pattern of ``only`` and none of ``skip`` are quantized, and with ``only`` of "*" products
    and convolutions that are no layer too. ``narrow_weights``: they get 7 bits, for CPUs whose kernels would overflow;
    None finds out whether this one's would.

    Takes dynamo's lock for the time of export. Raises CannotQuantize.
    """
    narrow = saturates() if narrow_weights is None else narrow_weights
    quantizer = _make_quantizer(
        module, _configuration(dynamic=calibration is None, narrow_weights=narrow), only=only, skip=skip
    )
    prepared = _locked(lambda: prepare_pt2e(_export(module, arguments, dynamic_shapes), quantizer))
    # Weights are measured too, when the network first runs, whatever on.
    _measure(prepared, (arguments,) if calibration is None else calibration)
    graph: torch.fx.GraphModule = _locked(lambda: convert_pt2e(prepared))
    _drop_unused(graph)
    if count_quantized(graph) == 0:
        raise CannotQuantize("has no linear layer or convolution, in the graph that torch.export makes of it")
    return graph


def count_quantized(graph: torch.fx.GraphModule) -> int:
    """How many weights of ``graph`` are in 8-bit integers."""
    return sum(1 for node in graph.graph.nodes if node.target is _DEQUANTIZED)


def _make_quantizer(
    module: torch.nn.Module, configuration: Any, *, only: Sequence[str], skip: Sequence[str]
) -> X86InductorQuantizer:
    named = [name for name, child in module.named_modules() if isinstance(child, _LAYERS)]
    everything = tuple(only) == EVERYTHING
    chosen = choose(named, only=only, skip=skip, kind=_KIND) if named or skip or not everything else ()
    quantizer = X86InductorQuantizer()
    # It would quantize products of two tensors too, for which there is no kernel of 8-bit integers.
    quantizer.set_function_type_qconfig(torch.mul, None)
    if everything:
        quantizer.set_global(configuration)
    settings = (
        {name: None for name in named if name not in chosen} if everything else dict.fromkeys(chosen, configuration)
    )
    for name, setting in settings.items():
        quantizer.set_module_name_qconfig(name, setting)
    return quantizer


def _measure(prepared: torch.fx.GraphModule, samples: Iterable[Arguments]) -> None:
    try:
        with torch.no_grad():
            for sample in samples:
                prepared(*sample.positional, **sample.keyword)
    except Exception as exc:
        raise CannotQuantize(
            f"fails on the samples that its activations are to be measured on: {first_line(exc)}"
        ) from exc


def _configuration(*, dynamic: bool, narrow_weights: bool) -> Any:
    """How a layer is quantized: activations by the tensor, weights by row.

    Torchao's own way for CPUs without VNNI, reduce_range, takes the bit from the activations. Weights, which have a
    scale for each row, spare it more easily.
    """
    configuration = get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    if not narrow_weights:
        return configuration
    weight = dataclasses.replace(configuration.weight, quant_min=-NARROW, quant_max=NARROW - 1)
    return dataclasses.replace(configuration, weight=weight)


def _locked(make: Callable[[], torch.fx.GraphModule]) -> torch.fx.GraphModule:
    """What ``make`` makes, with nothing compiled meanwhile.

    While torch traces, it says so in variables of the process, which dynamo looks at.
    """
    with compile_lock, torch.no_grad():
        return make()


def _export(module: torch.nn.Module, arguments: Arguments, dynamic_shapes: Any) -> torch.fx.GraphModule:
    try:
        program = torch.export.export(
            module, arguments.positional, dict(arguments.keyword), dynamic_shapes=dynamic_shapes
        )
        # Inputs are held against the signature before they get here.
        graph: torch.fx.GraphModule = program.module(check_guards=False)
    except Exception as exc:
        why = textwrap.shorten(f"{type(exc).__name__}: {exc}", 600)
        raise CannotQuantize(f"cannot be made a graph by torch.export: {why}") from exc
    return graph


def _drop_unused(graph: torch.fx.GraphModule) -> None:
    """Let go of the weights that were quantized, as they were before."""
    graphs = [(name, each) for name, each in graph.named_modules() if isinstance(each, torch.fx.GraphModule)]
    used = {
        f"{name}.{node.target}".lstrip(".")
        for name, each in graphs
        for node in each.graph.nodes
        if node.op == "get_attr"
    }
    tensors = [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]
    for name, _ in tensors:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
