"""dynamo's names for where a graph's inputs and constants come from, and what lies there in another process."""

import re
import sys
from types import ModuleType
from typing import NamedTuple

import torch

from preheat_backends.torch_compile.fingerprint import tell
from preheat_backends.torch_programs.python_module import IMPORTED

# An input among a call's arguments, and what is reached from the global variables of an imported module.
_ARGUMENT = re.compile(r"L\['(args|kwargs)'\]\[('?)(\w+)\2\]")
_GLOBAL = re.compile(r"G\['__import_(\w+)'\](.*)")
# All that names call for, beside attributes and items.
_BUILTINS = {"getattr": getattr, "list": list, "dict": dict, "tuple": tuple, "type": type}


class Unnamed(Exception):
    """A name that means nothing in another process."""


class Argument(NamedTuple):
    """Where an input is among a call's arguments: in the ``kind`` "args" or "kwargs", under a position or a name."""

    kind: str
    name: str


class Constant(NamedTuple):
    """A global variable and what it held: the module it is in, empty for the model's own; the rest of its name."""

    owner: str
    rest: str
    value: str


def argument_named(name: str) -> Argument | None:
    """The argument that ``name`` stands for; None if it is none."""
    found = _ARGUMENT.fullmatch(name)
    return None if found is None else Argument(found[1], found[3])


def weight_named(name: str, module: torch.nn.Module) -> torch.Tensor:
    """What ``name`` stands for among what ``module`` is made of. Raises Unnamed."""
    if not name.startswith("L['module']"):
        raise Unnamed(f"an input is {name}")
    try:
        value = eval(name, {"__builtins__": _BUILTINS}, {"L": {"module": module}})  # noqa: S307 - from our own files
    except Exception as exc:
        raise Unnamed(f"an input is {name}") from exc
    if not isinstance(value, torch.Tensor):
        raise Unnamed(f"an input is {name}, a {type(value).__name__}")
    return value


def constant_named(name: str, value: object) -> Constant:
    """The global variable ``name``, with ``value``. Raises Unnamed, and Indescribable for the value."""
    found = _GLOBAL.fullmatch(name)
    owner = _imported_as(found[1]) if found else None
    if found is None or owner is None:
        raise Unnamed(f"it depends on {name}")
    return Constant("" if owner.startswith(IMPORTED) else owner, found[2], tell(value))


def holds(constant: Constant, module: torch.nn.Module) -> bool:
    """Whether the global variable is now what it was; ``module`` is the model's. Raises Indescribable."""
    imported = sys.modules.get(constant.owner) if constant.owner else _own_code(module)
    if imported is None:
        return False
    try:
        value = eval(f"imported{constant.rest}", {"__builtins__": _BUILTINS}, {"imported": imported})  # noqa: S307 - from our own files
    except Exception:  # it has no such thing any more
        return False
    return tell(value) == constant.value


def _imported_as(alias: str) -> str | None:
    """The name of the module that dynamo gave an ``alias``, in which every dot is ``_dot_``."""
    return next((name for name in sys.modules if name.replace(".", "_dot_") == alias), None)


def _own_code(module: torch.nn.Module) -> ModuleType | None:
    """The ``model.py`` that ``module`` was built by."""
    names = {type(submodule).__module__ for submodule in module.modules()}
    return next((sys.modules.get(name) for name in names if name.startswith(IMPORTED)), None)
