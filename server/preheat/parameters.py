"""Backend parameters: strings from a configuration, parsed into a frozen dataclass."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from preheat.errors import InvalidConfig

T = TypeVar("T")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def parse_parameters(schema: type[T], values: Mapping[str, str], *, where: str) -> T:
    """Build ``schema`` from ``values``.

    Every field of ``schema`` must have a default and be a str, int, float, bool or string enum, or one of them or
    None. Raises InvalidConfig, beginning with ``where``, for a key that is no field and for a value its field cannot
    hold.
    """
    hints = typing.get_type_hints(schema)
    names = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    parsed: dict[str, Any] = {}
    for key, text in values.items():
        if key not in names:
            allowed = ", ".join(names) if names else "this backend takes none"
            raise InvalidConfig(f"{where}: {key}: unknown parameter; allowed: {allowed}")
        try:
            parsed[key] = _parse_value(hints[key], text)
        except ValueError as exc:
            raise InvalidConfig(f"{where}: {key}: {text!r}: {exc}") from exc
    return schema(**parsed)


def _parse_value(kind: Any, text: str) -> Any:
    """Parse ``text`` as ``kind``; raises ValueError saying what is expected."""
    if isinstance(kind, types.UnionType):
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("must be true or false")
        return _BOOLEANS[text.lower()]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        members = [member.value for member in kind]
        if text not in members:
            raise ValueError(f"must be one of {', '.join(members)}")
        return kind(text)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"must be {'an integer' if kind is int else 'a number'}") from None
