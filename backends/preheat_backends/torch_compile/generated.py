"""The Python modules that inductor generates around its kernels: which there are, their bytecode, giving them back."""

import marshal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch._inductor.codecache
from torch._C._dynamo.eval_frame import reset_code
from torch._inductor.codecache import PyCodeCache

_BYTECODE = ".code"


def generated_modules() -> Sequence[ModuleType]:
    """The modules that inductor has generated and loaded, oldest first. Frozen weights are attributes of theirs."""
    return tuple(PyCodeCache.modules)


def write_bytecode(modules: Sequence[ModuleType]) -> None:
    """Leave the bytecode of generated ``modules`` beside their files. Raises OSError."""
    for module in modules:
        path = Path(module.__file__ or "")
        path.with_suffix(_BYTECODE).write_bytes(marshal.dumps(compile(path.read_text(), path, "exec")))


@contextmanager
def using_bytecode() -> Iterator[None]:
    """Have generated modules loaded from bytecode that lies beside them.

    Compiling their thousands of lines keeps the interpreter's lock for tens of milliseconds at a stretch. The caller
    holds dynamo's lock.
    """
    codecache: Any = torch._inductor.codecache
    load = codecache._reload_python_module

    def load_bytecode(key: str, path: str, set_sys_modules: bool = True) -> ModuleType:  # noqa: FBT001, FBT002 - torch's
        file = Path(path).with_suffix(_BYTECODE)
        if not file.exists():
            made: ModuleType = load(key, path, set_sys_modules=set_sys_modules)
            return made
        module: Any = ModuleType(f"torch._inductor.runtime.compile_tasks.{key}")
        module.__file__, module.key = path, key
        exec(marshal.loads(file.read_bytes()), vars(module))  # noqa: S102, S302 - what was written above
        if set_sys_modules:
            sys.modules[module.__name__] = module
        loaded: ModuleType = module
        return loaded

    codecache._reload_python_module = load_bytecode
    try:
        yield
    finally:
        codecache._reload_python_module = load


def release(codes: Sequence[CodeType], modules: Sequence[ModuleType]) -> None:
    """Forget the graphs compiled for ``codes``, which are not run any more, and their generated ``modules``."""
    for code in codes:
        reset_code(code)
    for module in modules:
        if module in PyCodeCache.modules:
            PyCodeCache.modules.remove(module)
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
