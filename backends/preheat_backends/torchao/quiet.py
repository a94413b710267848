"""Importing torchao without what it says on import."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_noise() -> Iterator[None]:
    """Silence what torchao says of kernels for other hardware, and of a deprecation of its own."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# It has no other effect than that its weights are hashed in the way that torch has for all such tensors.
warnings.filterwarnings("ignore", message=r"\w+Tensor does not implement _stable_hash_for_caching")
