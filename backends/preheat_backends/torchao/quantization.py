"""Quantizing a network layer by layer: its linear layers get weights of torchao's, which bring their own arithmetic."""

import enum
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from preheat_backends.torchao.kernels import saturates
from preheat_backends.torchao.layers import EVERYTHING, CannotQuantize, choose
from preheat_backends.torchao.quiet import without_noise
from preheat_backends.wording import list_names

with without_noise():
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

log = logging.getLogger(__name__)


class Quantization(enum.Enum):
    """What a network computes in.

    Only the weights are small, or for the multiplication the activations are too. PT2E is by graph instead of by
    layer. CHECKPOINT: as the file has it.
    """

    INT8_WEIGHT_ONLY = "int8_weight_only"
    INT8_DYNAMIC = "int8_dynamic"
    INT4_WEIGHT_ONLY = "int4_weight_only"
    FP8_WEIGHT_ONLY = "fp8_weight_only"
    FP8_DYNAMIC = "fp8_dynamic"
    PT2E_STATIC = "pt2e_static"
    PT2E_DYNAMIC = "pt2e_dynamic"
    CHECKPOINT = "checkpoint"

    @property
    def by_graph(self) -> bool:
        """Whether the network is exported, and its graph quantized."""
        return self in (Quantization.PT2E_STATIC, Quantization.PT2E_DYNAMIC)


class Int4Algorithm(enum.Enum):
    """How scales and zeros of 4-bit weights are found: from the extremes of each group, or by half-quadratic search."""

    TINYGEMM = "tinygemm"
    HQQ = "hqq"


DEFAULT_GROUP_SIZE = 128
_INPUTS_OF_BF16 = 8
_ROWS_OF_INT4 = 16
_TILE_OF_FP8 = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """How linear layers are quantized, and which: those whose name fits a pattern of ``only``, and none of ``skip``.

    ``group_size``: so many 4-bit weights share a scale. ``compiled``: inductor will compile the network for ``device``;
    ``frozen``: with its weights as constants.
    """

    quantization: Quantization
    device: torch.device
    only: Sequence[str] = EVERYTHING
    skip: Sequence[str] = ()
    group_size: int = DEFAULT_GROUP_SIZE
    int4_algorithm: Int4Algorithm = Int4Algorithm.TINYGEMM
    compiled: bool = False
    frozen: bool = False


def quantize(module: torch.nn.Module, plan: Plan, *, model: str) -> None:
    """Quantize linear layers of ``module``, which is on the host, by ``plan``.

    Raises CannotQuantize. The log says how much of ``model`` it was.
    """
    linear = {name: child for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)}
    chosen = choose(list(linear), only=plan.only, skip=plan.skip, kind="torch.nn.Linear")
    layers = {name: linear[name].weight for name in linear if name in chosen}
    _refuse_misfits(layers, plan)
    share = sum(weight.numel() for weight in layers.values()) / sum(each.numel() for each in module.parameters())
    with _on(plan.device):
        # What is packed for a GPU's kernels is packed there; all else is quantized on the host, and moved.
        device = plan.device if plan.device.type == "cuda" and plan.quantization in _PACKED_ON_DEVICE else None
        quantize_(module, _config(plan), filter_fn=lambda _, name: name in chosen, device=device)
    if plan.quantization is Quantization.INT8_DYNAMIC:
        for name in chosen:
            _use_whole_range(linear[name].weight)
    log.info(
        "%s: %s of %d of %d linear layers, with %.0f %% of the model's parameters",
        model,
        plan.quantization.value,
        len(chosen),
        len(linear),
        100 * share,
    )


def refuse_crashing(layers: Mapping[str, torch.Tensor]) -> None:
    """Refuse what would kill the process, compiled for the CPU: of ``layers`` of 8-bit weights, by their weights.

    For bf16 activations inductor calls aten::_weight_int8pack_mm, which in torch 2.13 reads beyond its weights unless
    the inputs are a multiple of 8 (seen with 1, 4, 15, 17, 31, 33 and 100).
    """
    odd = [
        name for name, weight in layers.items() if weight.dtype is torch.bfloat16 and weight.shape[1] % _INPUTS_OF_BF16
    ]
    if odd:
        raise CannotQuantize(
            "has layers for which torch has no safe kernel of 8-bit weights beside bf16 on the CPU, their inputs being "
            f"no multiple of {_INPUTS_OF_BF16}: {list_names(odd)}; name them in parameter skip, or set dtype: fp32"
        )


_PACKED_ON_DEVICE = frozenset({Quantization.INT4_WEIGHT_ONLY, Quantization.FP8_DYNAMIC})


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _use_whole_range(weight: Any) -> None:
    """Have activations use 8 bits beside weights of 7, which is enough for products not to overflow."""
    weight.act_quant_kwargs.reduce_range = False


def _config(plan: Plan) -> Any:
    """What ``plan`` is in torchao's words.

    Everything is scaled by row or by group within it, of the weights and of the activations: an answer does not depend
    on its batch peers. What the configurations would set of inductor and of matrix multiplication holds for the
    process, and other models.
    """
    if plan.quantization is Quantization.INT8_WEIGHT_ONLY:
        return Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False, version=2)
    if plan.quantization is Quantization.INT8_DYNAMIC:
        return Int8DynamicActivationInt8WeightConfig(
            granularity=PerRow(),
            set_inductor_config=False,
            version=2,
            # Frozen, it becomes a kernel of oneDNN's; else it is exact everywhere.
            reduce_range=plan.frozen and plan.device.type == "cpu" and saturates(),
        )
    if plan.quantization is Quantization.FP8_WEIGHT_ONLY:
        return Float8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False, version=2)
    if plan.quantization is Quantization.FP8_DYNAMIC:
        return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False, version=2)
    return _int4_config(plan)


def _int4_config(plan: Plan) -> Any:
    """4-bit weights as torch's own kernels for the device have them: torchao's default needs a further package."""
    algorithm = Int4ChooseQParamsAlgorithm(plan.int4_algorithm.value)
    if plan.device.type == "cuda":
        return Int4WeightOnlyConfig(
            group_size=plan.group_size,
            int4_packing_format="tile_packed_to_4d",
            int4_choose_qparams_algorithm=algorithm,
            set_inductor_config=False,
            version=2,
        )
    try:
        with without_noise():
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError as exc:
        raise CannotQuantize(
            "cannot have 4-bit weights on the CPU with this torchao, whose layout for it came with 0.18"
        ) from exc
    return PrototypeInt4WeightOnlyConfig(
        group_size=plan.group_size, int4_choose_qparams_algorithm=algorithm, set_inductor_config=False
    )


def _refuse_misfits(layers: Mapping[str, torch.Tensor], plan: Plan) -> None:
    """Refuse layers that torchao would leave as they are without a word, or whose kernels would fail or worse."""
    if plan.quantization is Quantization.INT8_WEIGHT_ONLY and plan.compiled and plan.device.type == "cpu":
        refuse_crashing(layers)
    if plan.quantization is Quantization.INT4_WEIGHT_ONLY:
        _refuse_groups(layers, plan)
        _warn_of_slow_int4(layers, plan)
    if plan.quantization is Quantization.FP8_DYNAMIC:
        odd = [name for name, weight in layers.items() if any(size % _TILE_OF_FP8 for size in weight.shape)]
        if odd:
            raise CannotQuantize(
                f"has layers whose inputs or outputs are no multiple of {_TILE_OF_FP8}, which the kernels of fp8 take "
                f"only: {list_names(odd)}; name them in parameter skip"
            )
    if plan.device.type == "cuda" and plan.quantization in _PACKED_ON_DEVICE:
        wide = [name for name, weight in layers.items() if weight.dtype is not torch.bfloat16]
        if wide:
            raise CannotQuantize(
                f"has weights that are not bf16, which the kernels of {plan.quantization.value} compute in on a GPU: "
                f"{list_names(wide)}; set dtype: bf16"
            )


def _warn_of_slow_int4(layers: Mapping[str, torch.Tensor], plan: Plan) -> None:
    """Torch 2.13 has vector instructions for them in bf16 only: in fp32 they took 90 times as long as fp32 weights."""
    if plan.device.type == "cpu" and any(weight.dtype is not torch.bfloat16 for weight in layers.values()):
        log.warning("4-bit weights are very slow on the CPU beside other types than bf16; set dtype: bf16")


def _refuse_groups(layers: Mapping[str, torch.Tensor], plan: Plan) -> None:
    undivided = [name for name, weight in layers.items() if weight.shape[1] % plan.group_size]
    if undivided:
        raise CannotQuantize(
            f"has layers whose inputs are no multiple of group_size: {plan.group_size}: {list_names(undivided)}; set a "
            "group_size that divides them, or name them in parameter skip"
        )
    odd = [name for name, weight in layers.items() if weight.shape[0] % _ROWS_OF_INT4]
    if odd and plan.device.type == "cpu":
        raise CannotQuantize(
            f"has layers whose outputs are no multiple of {_ROWS_OF_INT4}, which the CPU's kernel of 4-bit weights "
            f"takes only: {list_names(odd)}; name them in parameter skip"
        )
