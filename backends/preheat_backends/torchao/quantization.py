"""Which layers are quantized, and how."""

import enum
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch

log = logging.getLogger(__name__)


@contextmanager
def _without_import_noise() -> Iterator[None]:
    """Silence what torchao says on import of kernels for other hardware and of a deprecation of its own."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


with _without_import_noise():
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

# It has no other effect than that its weights are hashed in the way that torch has for all such tensors.
warnings.filterwarnings("ignore", message="Int8Tensor does not implement _stable_hash_for_caching")


class Quantization(enum.Enum):
    """What becomes an 8-bit integer: the weights, or for the multiplication the activations too."""

    INT8_WEIGHT_ONLY = "int8_weight_only"
    INT8_DYNAMIC = "int8_dynamic"


# Everything is scaled by row, of the weights and of the activations: an answer does not depend on its batch peers.
# What the configurations would set of inductor and of matrix multiplication holds for the process, and other models.
_CONFIGS = {
    Quantization.INT8_WEIGHT_ONLY: Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False, version=2),
    Quantization.INT8_DYNAMIC: Int8DynamicActivationInt8WeightConfig(
        granularity=PerRow(), set_inductor_config=False, version=2
    ),
}


_INPUTS_OF_BF16 = 8


class CannotQuantize(Exception):
    """No linear layer is left to quantize, a pattern names none, or one cannot be served. The text says which."""


def quantize(
    module: torch.nn.Module,
    quantization: Quantization,
    *,
    model: str,
    only: Sequence[str],
    skip: Sequence[str],
    compiled_for_cpu: bool,
) -> None:
    """Quantize the linear layers of ``module``: those whose name fits a pattern of ``only``, and none of ``skip``.

    Raises CannotQuantize. The log says how much of ``model`` it was.
    """
    linear = {name: child for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)}
    chosen = _choose(list(linear), only=only, skip=skip)
    if compiled_for_cpu and quantization is Quantization.INT8_WEIGHT_ONLY:
        _refuse_crashing({name: linear[name] for name in chosen})
    share = sum(linear[name].weight.numel() for name in chosen) / sum(each.numel() for each in module.parameters())
    quantize_(module, _CONFIGS[quantization], filter_fn=lambda _, name: name in chosen)
    log.info(
        "%s: %s of %d of %d linear layers, with %.0f %% of the model's parameters",
        model,
        quantization.value,
        len(chosen),
        len(linear),
        100 * share,
    )


def _choose(names: Sequence[str], *, only: Sequence[str], skip: Sequence[str]) -> Collection[str]:
    if not names:
        raise CannotQuantize("has no torch.nn.Linear, the only kind of layer that is quantized")
    for pattern in (*only, *skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise CannotQuantize(f"has no torch.nn.Linear that {pattern!r} fits; it has {_list(names)}")
    fit = {name for name in names if any(fnmatchcase(name, pattern) for pattern in only)}
    chosen = {name for name in fit if not any(fnmatchcase(name, pattern) for pattern in skip)}
    if not chosen:
        raise CannotQuantize(f"is left no torch.nn.Linear to quantize; it has {_list(names)}")
    return chosen


def _refuse_crashing(layers: Mapping[str, torch.nn.Linear]) -> None:
    """Refuse what would kill the process.

    For bf16 activations inductor calls aten::_weight_int8pack_mm, which in torch 2.13 reads beyond its weights unless
    the inputs are a multiple of 8 (seen with 1, 4, 15, 17, 31, 33 and 100).
    """
    odd = [
        name
        for name, layer in layers.items()
        if layer.weight.dtype is torch.bfloat16 and layer.in_features % _INPUTS_OF_BF16
    ]
    if odd:
        raise CannotQuantize(
            "has layers for which torch has no safe kernel of 8-bit weights beside bf16 on the CPU, their inputs being "
            f"no multiple of {_INPUTS_OF_BF16}: {_list(odd)}; name them in parameter skip, or set dtype: fp32"
        )


def _list(names: Sequence[str], *, limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
