"""Giving back what torch keeps of compiled code, in tables of its own, for as long as the process lives."""

import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

from torch._C._dynamo.eval_frame import reset_code
from torch._inductor.codecache import PyCodeCache


def generated_modules() -> Sequence[ModuleType]:
    """The modules that inductor has generated and loaded, oldest first. Frozen weights are attributes of theirs."""
    return tuple(PyCodeCache.modules)


def release(codes: Sequence[CodeType], modules: Sequence[ModuleType]) -> None:
    """Forget the graphs compiled for ``codes``, which are not run any more, and their generated ``modules``."""
    for code in codes:
        reset_code(code)
    for module in modules:
        if module in PyCodeCache.modules:
            PyCodeCache.modules.remove(module)
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
