"""A network whose weights were quantized before: ``model.py`` with a checkpoint of torchao's tensors.

``model.safetensors`` as torchao writes it, which says in its header what its tensors are parts of; or ``model.pt``, a
state dict that torch.save wrote, of which nothing is unpickled but tensors and what torchao's are made of.
"""

import logging
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from preheat.backend import ModelSource
from preheat.errors import InvalidArtifact
from preheat_backends.artifacts import Kind, Takes, sniff
from preheat_backends.hardware import Arithmetic, require
from preheat_backends.torch_programs.program import first_line
from preheat_backends.torch_programs.python_module import ModuleProgram, assign_weights, load_python_module
from preheat_backends.torchao.kernels import NARROW, saturates
from preheat_backends.torchao.layers import CannotQuantize
from preheat_backends.torchao.options import Options
from preheat_backends.torchao.quantization import Quantization, refuse_crashing
from preheat_backends.torchao.quiet import without_noise
from preheat_backends.wording import list_names

with without_noise():
    from torchao.quantization import Float8Tensor, Int4TilePackedTo4dTensor, Int8Tensor, PerRow
    from torchao.utils import TorchAOBaseTensor

log = logging.getLogger(__name__)
_SAFETENSORS, _PICKLED = "model.safetensors", "model.pt"
_TAKES = {
    _SAFETENSORS: Takes("torchao", (_SAFETENSORS,), frozenset({Kind.SAFETENSORS}), f"safetensors as {_SAFETENSORS}"),
    _PICKLED: Takes("torchao", (_PICKLED,), frozenset({Kind.CHECKPOINT}), f"what torch.save wrote as {_PICKLED}"),
}
_OF_MSLK = frozenset({"Int4Tensor", "Int4PreshuffledTensor"})
_HOW = (
    "quantize the module by torchao.quantization.quantize_, and write it by tensors, metadata = "
    "flatten_tensor_state_dict(module.state_dict()) and safetensors.torch.save_file(tensors, 'model.safetensors', "
    "metadata)"
)


def load_checkpoint(
    path: Path, *, outputs: tuple[str, ...], device: torch.device, check: Callable[[torch.nn.Module], object]
) -> ModuleProgram:
    """The module of ``path``, a ``model.py``, with the checkpoint beside it; ``check`` sees it before it moves.

    ``outputs`` are the names that ``forward``'s results are given. Raises InvalidArtifact, and what ``check`` raises.
    """
    state, weights = _read(path.parent)

    def assign(module: torch.nn.Module, _: Path) -> None:
        assign_weights(module, state, weights)

    return load_python_module(path, outputs=outputs, device=device, weights=assign, prepare=check)


def check_quantized(module: torch.nn.Module, source: ModelSource, options: Options) -> None:
    """Hold the quantized weights of ``module`` against the device of ``source`` and against ``options``.

    Raises CannotQuantize for what this backend does not serve, InvalidConfig for what the device lacks.
    """
    quantized = {name: each for name, each in module.named_parameters() if isinstance(each, TorchAOBaseTensor)}
    if not quantized:
        raise CannotQuantize("has no quantized weight in its checkpoint; set quantization to how it is to be quantized")
    for name, weight in quantized.items():
        _check_device(name, weight, source)
    _refuse_dependent_rows(quantized)
    if options.dtype is not None:
        _check_dtype(module, options.dtype.dtype)
    if source.device == "cpu" and options.parameters.compile:
        int8 = {name: weight for name, weight in quantized.items() if type(weight) is Int8Tensor}
        refuse_crashing({name: weight for name, weight in int8.items() if not _is_dynamic(weight)})
        if options.parameters.freezing:
            _refuse_saturating({name: weight for name, weight in int8.items() if _is_dynamic(weight)})
    kinds = ", ".join(sorted({type(weight).__name__ for weight in quantized.values()}))
    log.info("%s: %d quantized weights from its checkpoint: %s", source.name, len(quantized), kinds)


def _check_device(name: str, weight: torch.Tensor, source: ModelSource) -> None:
    arithmetic, only_on = _needs(name, weight)
    if only_on not in (None, source.device.partition(":")[0]):
        raise CannotQuantize(
            f"has a {type(weight).__name__} as {name!r}, which is packed for {only_on}, but is to be on "
            f"{source.device}; quantize it for that device"
        )
    if arithmetic is not None:
        require(source, arithmetic, "quantization", Quantization.CHECKPOINT.value)


def _refuse_dependent_rows(layers: Mapping[str, Any]) -> None:
    """Refuse activations that are scaled by the whole batch, as they come: the server was told that rows are apart."""
    whole = [
        name
        for name, weight in layers.items()
        if _is_dynamic(weight)
        and getattr(weight, "act_quant_scale", None) is None
        and not isinstance(weight.act_quant_kwargs.granularity, PerRow)
    ]
    if whole:
        raise CannotQuantize(
            f"has layers that scale activations by the whole batch, so that an answer would depend on its batch peers: "
            f"{list_names(whole)}; quantize them with granularity=PerRow()"
        )


def _check_dtype(module: torch.nn.Module, dtype: torch.dtype) -> None:
    others = [name for name, each in module.named_parameters() if each.is_floating_point() and each.dtype != dtype]
    if others:
        raise CannotQuantize(
            f"has weights that are not {dtype}, which parameter dtype says they are: {list_names(others)}"
        )


def _refuse_saturating(layers: Mapping[str, Any]) -> None:
    """Refuse weights of 8 bits where only 7 multiply without overflow."""
    if not saturates():
        return
    full = [name for name, weight in layers.items() if weight.qdata.min() < -NARROW or weight.qdata.max() >= NARROW]
    if full:
        raise CannotQuantize(
            "has weights of 8 bits beside activations of 8 bits, whose products overflow in the kernels that freezing "
            f"brings on a CPU without VNNI: {list_names(full)}; leave freezing out, or quantize with reduce_range=True"
        )


def _needs(name: str, weight: torch.Tensor) -> tuple[Arithmetic | None, str | None]:
    """What a quantized weight is computed by, and the kind of device that it is packed for, if for one only."""
    dynamic = _is_dynamic(weight)
    kind = type(weight)
    if kind is Int8Tensor:
        return (Arithmetic.INT8 if dynamic else None), None
    if kind is Float8Tensor:
        return (Arithmetic.FP8 if dynamic else Arithmetic.FP8_WEIGHT_ONLY), None
    if kind is Int4TilePackedTo4dTensor:
        return Arithmetic.INT4_WEIGHT_ONLY, "cuda"
    if kind.__name__ == "Int4OpaqueTensor" and getattr(weight, "act_mapping_type", None) is None:
        return Arithmetic.INT4_WEIGHT_ONLY, "cpu"
    # Those of torchao's default layouts of 4 bits are in a further package.
    why = ", its kernels being in the package mslk" if kind.__name__ in _OF_MSLK else ""
    raise CannotQuantize(
        f"has a {kind.__name__} as {name!r}, which is not served{why}; served are Int8Tensor, Float8Tensor, and of 4 "
        "bits Int4OpaqueTensor on the CPU and Int4TilePackedTo4dTensor on CUDA devices"
    )


def _is_dynamic(weight: torch.Tensor) -> bool:
    """Whether activations are quantized too, as they come."""
    return getattr(weight, "act_quant_kwargs", None) is not None


def _read(folder: Path) -> tuple[Mapping[str, torch.Tensor], Path]:
    """The state dict in ``folder``, and the file it is in."""
    present = [name for name in _TAKES if (folder / name).exists()]
    if len(present) != 1:
        has = "both" if present else "neither"
        raise InvalidArtifact(
            f"{folder}: quantization: checkpoint takes one of {_SAFETENSORS} and {_PICKLED}, and {has} is there; {_HOW}"
        )
    path = folder / present[0]
    kind = sniff(path)
    if kind not in _TAKES[path.name].kinds:
        raise _TAKES[path.name].refuse(path, kind)
    return (_read_safetensors(path) if path.name == _SAFETENSORS else _read_pickled(path)), path


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    with without_noise():
        from torchao.prototype.safetensors.safetensors_support import (
            unflatten_tensor_state_dict,
        )
        from torchao.prototype.safetensors.safetensors_utils import is_metadata_torchao
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copied off the file, which safetensors maps: rewriting it must not change a model that is being served.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as exc:
        raise InvalidArtifact(f"{path}: safetensors cannot read it: {first_line(exc)}") from exc
    if not is_metadata_torchao(metadata):
        raise InvalidArtifact(
            f"{path}: its header does not say which tensors are parts of quantized ones, as torchao's does; set "
            f"quantization to how the weights are to be quantized, or {_HOW}"
        )
    try:
        state, left = unflatten_tensor_state_dict(tensors, metadata)
    except Exception as exc:
        raise InvalidArtifact(f"{path}: torchao cannot put its tensors together: {first_line(exc)}") from exc
    if left:
        raise InvalidArtifact(f"{path}: has tensors that are no part of any weight: {list_names(sorted(left))}")
    return dict(state)


def _read_pickled(path: Path) -> Mapping[str, torch.Tensor]:
    # It tells torch that its tensors may be loaded. torchao 0.17 has none.
    with without_noise(), suppress(ImportError):
        import torchao.prototype.quantization.int4  # noqa: F401
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:
        why = textwrap.shorten(str(exc), 400)
        raise InvalidArtifact(
            f"{path}: is refused, since it has something other than tensors in it, or is damaged: {why}"
        ) from exc
    plain = isinstance(state, Mapping) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not plain:
        raise InvalidArtifact(f"{path}: holds a {type(state).__name__}, not the state dict of a module")
    return dict(state)
