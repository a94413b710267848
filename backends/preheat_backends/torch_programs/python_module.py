"""``model.py``: a module built by its author's code, with weights from ``model.safetensors``.

``model.py`` is one file that defines ``build_model() -> torch.nn.Module``. Its ``forward`` takes the inputs by their
names and returns a tensor, a tuple or list of tensors in the order of the configured outputs, or a dictionary of
tensors by output name. If ``model.safetensors`` lies beside it, it holds every parameter and persistent buffer, and
takes their place: then ``build_model`` may build on the meta device and so allocate and initialise nothing.
"""

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file

from preheat.errors import ExecutionFailed, InvalidArtifact
from preheat_backends.artifacts import Kind, Takes, sniff
from preheat_backends.torch_programs.program import Arguments, NetworkProgram, Storages, first_line
from preheat_backends.wording import list_names

WEIGHTS = "model.safetensors"
Prepare: TypeAlias = Callable[[torch.nn.Module], object]
# Gives a module that `model.py`, at the path, has built its weights.
Weights: TypeAlias = Callable[[torch.nn.Module, Path], object]
# Begins the names under which `model.py` files are imported, each with a number of its own.
IMPORTED = "preheat_model_"
_NUMBERS = itertools.count()


class ModuleProgram(NetworkProgram):
    """A module in eval mode. What ``forward`` does to its inputs nobody knows, so it gets copies."""

    def __init__(self, module: torch.nn.Module, outputs: tuple[str, ...], imported: str) -> None:
        self._module = module
        self._outputs = outputs
        self._imported = imported
        self._kept = Storages(itertools.chain(module.parameters(), module.buffers(), _plain_attributes(module)))

    @property
    def module(self) -> torch.nn.Module:
        """What ``build_model`` built."""
        return self._module

    def arrange(self, inputs: Mapping[str, torch.Tensor]) -> Arguments:
        """All by name."""
        return Arguments(keyword=inputs)

    def pick(self, result: object) -> Mapping[str, torch.Tensor]:
        """Put names to what ``forward`` returned."""
        named = dict(zip(self._outputs, _in_order(result, self._outputs), strict=True))
        for name, value in named.items():
            if not isinstance(value, torch.Tensor):
                raise ExecutionFailed(f"forward returned {type(value).__name__} for output {name!r}, not a tensor")
        return named

    def keeps(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in a parameter, a buffer, or a tensor that is an attribute like any other."""
        return self._kept.hold(tensor)

    def close(self) -> None:
        """Forget the imported ``model.py``."""
        sys.modules.pop(self._imported, None)


def load_python_module(
    path: Path, *, outputs: tuple[str, ...], device: torch.device, weights: Weights, prepare: Prepare = lambda _: None
) -> ModuleProgram:
    """Import ``path``, build its module, give it its weights, ``prepare`` it on the host, and move it to ``device``.

    ``outputs`` are the names that ``forward``'s results are given. Raises InvalidArtifact, and what ``weights`` and
    ``prepare`` raise.
    """
    imported = f"{IMPORTED}{next(_NUMBERS)}"
    try:
        module = _build(_import(path, imported), path)
        weights(module, path)
        module.eval().requires_grad_(requires_grad=False)
        prepare(module)
        return ModuleProgram(module.to(device), outputs, imported)
    except BaseException:
        sys.modules.pop(imported, None)
        raise


def _in_order(result: object, names: tuple[str, ...]) -> Sequence[Any]:
    if isinstance(result, torch.Tensor):
        result = (result,)
    if isinstance(result, Mapping):
        missing = [name for name in names if name not in result]
        if missing:
            raise ExecutionFailed(f"forward returned {list_names(result)}; output {missing[0]!r} is not among them")
        return [result[name] for name in names]
    if not isinstance(result, tuple | list):
        raise ExecutionFailed(f"forward returned {type(result).__name__}, not a tensor, tuple, list or dict")
    if len(result) != len(names):
        raise ExecutionFailed(f"forward returned {len(result)} values; the outputs are {list_names(names)}")
    return result


class _SourceLoader(SourceFileLoader):
    """Compiles at every load.

    A ``__pycache__`` would be written into the model repository, and one left there of an edit within the same second
    would be taken for the new source.
    """

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - importlib's signature
        return self.source_to_code(self.get_data(self.path), self.path)


def _import(path: Path, name: str) -> ModuleType:
    """Import ``path`` as ``name``, which nothing else has, so that versions of a model live side by side.

    It stays in sys.modules for as long as the model is loaded: dataclasses and pickle look their classes up there.
    """
    loader = _SourceLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    imported = module_from_spec(spec)
    sys.modules[name] = imported
    try:
        loader.exec_module(imported)
    except Exception as exc:
        raise InvalidArtifact(f"{path}: importing it raised {first_line(exc)}") from exc
    return imported


def _build(imported: ModuleType, path: Path) -> torch.nn.Module:
    build = getattr(imported, "build_model", None)
    if not callable(build):
        raise InvalidArtifact(f"{path}: defines no build_model(); it must return the torch.nn.Module to serve")
    try:
        module = build()
    except Exception as exc:
        raise InvalidArtifact(f"{path}: build_model() raised {first_line(exc)}") from exc
    if not isinstance(module, torch.nn.Module):
        raise InvalidArtifact(f"{path}: build_model() returned {type(module).__name__}, not a torch.nn.Module")
    return module


def load_weights(module: torch.nn.Module, path: Path, *, backend: str) -> None:
    """Give ``module``, which the file at ``path`` built, the weights that lie beside it, if any.

    Raises InvalidArtifact.
    """
    weights = path.with_name(WEIGHTS)
    if weights.exists():
        assign_weights(module, _read_weights(weights, backend=backend), weights)
    else:
        _refuse_empty(module, f"{weights} is missing, and build_model() leaves on the meta device")


def assign_weights(module: torch.nn.Module, state: Mapping[str, torch.Tensor], weights: Path) -> None:
    """Put ``state``, from the file ``weights``, in place of the module's own: all of it. Raises InvalidArtifact."""
    try:
        module.load_state_dict(dict(state), strict=True, assign=True)
    except Exception as exc:
        # torch lists every key that is wrong, on lines of their own: a few of them say enough.
        raise InvalidArtifact(f"{weights}: {textwrap.shorten(str(exc), 500)}") from exc
    _refuse_empty(module, f"{weights} has no values for")


def _read_weights(weights: Path, *, backend: str) -> Mapping[str, torch.Tensor]:
    """Copied off the file, which safetensors maps: rewriting it must not change a model that is being served."""
    takes = Takes(backend, (WEIGHTS,), frozenset({Kind.SAFETENSORS}), f"a safetensors file as {WEIGHTS}")
    kind = sniff(weights)
    if kind not in takes.kinds:
        raise takes.refuse(weights, kind)
    try:
        return {name: tensor.clone() for name, tensor in load_file(weights).items()}
    except Exception as exc:
        raise InvalidArtifact(f"{weights}: {textwrap.shorten(str(exc), 500)}") from exc


def _refuse_empty(module: torch.nn.Module, why: str) -> None:
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise InvalidArtifact(f"{why} {list_names(empty)}")


def _plain_attributes(module: torch.nn.Module) -> Iterator[object]:
    """What submodules have as attributes, and in lists and dictionaries that are attributes: tensors among it."""
    for submodule in module.modules():
        for value in vars(submodule).values():
            yield value
            if isinstance(value, list | tuple):
                yield from value
            elif isinstance(value, dict):
                yield from value.values()
