"""How an archive is called: which argument each input is, and where in what it returns each output is.

An archive knows the names and types of its arguments, but no shapes, and of what it returns only how it is nested.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preheat.backend import ModelSource, Signature, TensorSpec
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat_backends.wording import list_names

# Triton's convention: a name that ends in the place of an argument or a result.
_PLACE = re.compile(r".*__(\d+)")


@dataclass(frozen=True, slots=True)
class Call:
    """How the archive's ``forward`` is called.

    ``arguments`` has the name of an argument for that of each input. ``outputs`` are the signature's, ``places`` where
    each is in a tuple or list that ``forward`` returns, None if there have to be as many as outputs, in their order.
    """

    arguments: Mapping[str, str]
    outputs: tuple[str, ...]
    places: tuple[int, ...] | None


def match_call(module: torch.jit.ScriptModule, path: Path, source: ModelSource, signature: Signature) -> Call:
    """How to call ``module`` to serve ``signature``. Raises InvalidConfig, InvalidArtifact."""
    schema = _schema(module, path)
    arguments = _match_inputs(schema.arguments[1:], source, signature.inputs)
    outputs = tuple(spec.name for spec in signature.outputs)
    places = _places(outputs)
    _check_result(schema.returns[0].type, path, source, outputs, places)
    return Call(arguments, outputs, places)


def _schema(module: torch.jit.ScriptModule, path: Path) -> Any:
    try:
        return module._c._get_method("forward").schema  # torch has no public way to ask
    except RuntimeError as exc:
        raise InvalidArtifact(f"{path}: the archive's module has no forward method") from exc


def _match_inputs(arguments: Sequence[Any], source: ModelSource, inputs: Sequence[TensorSpec]) -> Mapping[str, str]:
    """The argument of ``forward`` that each input is: of the same name, else at the place that its name ends in."""
    names = [argument.name for argument in arguments]
    declared = [spec.name for spec in inputs]
    places = _places(declared)
    if all(name in names for name in declared):
        chosen = dict(zip(declared, declared, strict=True))
    elif places is not None and all(place < len(names) for place in places) and len(set(places)) == len(places):
        chosen = {name: names[place] for name, place in zip(declared, places, strict=True)}
    else:
        unknown = next(name for name in declared if name not in names)
        raise _refuse(source, f"input {unknown!r}: no such argument", arguments)
    _check_arguments(arguments, {chosen[spec.name]: spec for spec in inputs}, source)
    return chosen


def _check_arguments(arguments: Sequence[Any], given: Mapping[str, TensorSpec], source: ModelSource) -> None:
    for argument in arguments:
        spec = given.get(argument.name)
        optional = argument.has_default_value()
        if spec is None and not optional:
            raise _refuse(source, f"input {argument.name!r}: not declared", arguments)
        if spec is not None and str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise _refuse(source, f"input {spec.name!r}: {argument.type} is no tensor", arguments)
        if spec is not None and spec.optional and not optional:
            raise _refuse(source, f"input {spec.name!r}: cannot be optional, having no default", arguments)


def _refuse(source: ModelSource, what: str, arguments: Iterable[Any]) -> InvalidConfig:
    has = ", ".join(f"{argument.name}: {argument.type}" for argument in arguments) or "no arguments"
    return InvalidConfig(
        f"{source.config_path}: {what}; forward of the archive in {source.version_path} has {has}: "
        "name inputs after them, or INPUT__0, INPUT__1 and so on by their places"
    )


def _check_result(
    kind: Any, path: Path, source: ModelSource, outputs: Sequence[str], places: Sequence[int] | None
) -> None:
    """Raise for what the result's type shows to be wrong; what it does not show, the first run will."""
    if isinstance(kind, torch.TupleType):
        elements = [str(element) for element in kind.elements()]
    elif isinstance(kind, torch.ListType | torch.DictType):
        return
    else:
        elements = [str(kind)]
    wrong = [element for element in elements if element not in ("Tensor", "Optional[Tensor]")]
    if wrong:
        raise InvalidArtifact(
            f"{path}: forward returns {kind}; it must return a tensor, a tuple or list of tensors, or a dictionary of "
            "tensors by name"
        )
    fits = len(elements) == len(outputs) if places is None else max(places) < len(elements)
    if not fits:
        raise InvalidConfig(
            f"{source.config_path}: outputs {list_names(outputs)}: forward of {path} returns {len(elements)} values, "
            f"{kind}"
        )


def _places(names: Sequence[str]) -> tuple[int, ...] | None:
    """The numbers that all of ``names`` end in, as Triton has it; None if some do not."""
    found = [_PLACE.fullmatch(name) for name in names]
    return tuple(int(match[1]) for match in found if match) if all(found) else None
