"""The server's own keys among a model's ``parameters``: those that begin with ``preheat.``."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preheat.backend import Dimension
from preheat.errors import InvalidConfig

_PREFIX = "preheat."
_RANGE = re.compile(r"(\d+)\.\.(\d*)(?:/(\d+))?")


@dataclass(frozen=True, slots=True)
class ServerParameters:
    """What a model's configuration asks of the server itself.

    ``buckets``: batch sizes to warm (and to pad to, for engines that specialize on shape); empty is powers of two.
    ``threads``: intra-op threads of each instance; None shares the cores out evenly. ``accept_row_dependence``: batch
    a model whose answers depend on batch peers. ``axis_names``: names for a tensor's axes. ``dimensions``: bounds of
    named axes.
    """

    buckets: tuple[int, ...] = ()
    threads: int | None = None
    accept_row_dependence: bool = False
    axis_names: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    dimensions: Mapping[str, Dimension] = field(default_factory=dict)


def parse_server_parameters(values: Mapping[str, str], file: Path) -> tuple[ServerParameters, dict[str, str]]:
    """Split a model's parameters into the server's, parsed, and the backend's, unread. Raises InvalidConfig."""
    fields: dict[str, object] = {}
    axis_names: dict[str, tuple[str | None, ...]] = {}
    dimensions: dict[str, Dimension] = {}
    for key in (key for key in values if key.startswith(_PREFIX)):
        kind, _, subject = key.removeprefix(_PREFIX).partition(".")
        try:
            if kind == "shape" and subject:
                axis_names[subject] = _parse_axis_names(values[key])
            elif kind == "dimension" and subject:
                dimensions[subject] = _parse_dimension(subject, values[key])
            elif kind in _PARSERS and not subject:
                fields[kind] = _PARSERS[kind](values[key])
            else:
                allowed = ", ".join(_PREFIX + name for name in (*_PARSERS, "shape.TENSOR", "dimension.NAME"))
                raise InvalidConfig(f"{file}: parameters: {key}: unknown parameter; the server's are {allowed}")
        except ValueError as exc:
            raise InvalidConfig(f"{file}: parameters: {key}: {values[key]!r}: {exc}") from exc
    rest = {key: value for key, value in values.items() if not key.startswith(_PREFIX)}
    return ServerParameters(axis_names=axis_names, dimensions=dimensions, **fields), rest  # type: ignore[arg-type]


def _parse_buckets(text: str) -> tuple[int, ...]:
    sizes = [_parse_count(part) for part in text.split(",")]
    return tuple(sorted(set(sizes)))


def _parse_count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError("must be whole numbers of at least 1, such as 4 or, for buckets, 1,2,8")
    return int(text)


def _parse_boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _parse_axis_names(text: str) -> tuple[str | None, ...]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("must name each dimension after the batch, separated by commas; _ for one without a name")
    return tuple(None if name == "_" else name for name in names)


def _parse_dimension(name: str, text: str) -> Dimension:
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError("must be MIN..MAX, MIN.. or MIN..MAX/STEP, such as 1..512 or 32..512/32")
    minimum, maximum, step = int(match[1]), int(match[2]) if match[2] else None, int(match[3] or 1)
    if step < 1 or (maximum is not None and maximum < minimum):
        raise ValueError("the maximum must not be below the minimum, and the step must be at least 1")
    dimension = Dimension(name, minimum, maximum, step)
    if not dimension.allows(-(-minimum // step) * step):
        raise ValueError(f"no multiple of {step} is within the bounds")
    return dimension


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "buckets": _parse_buckets,
    "threads": _parse_count,
    "accept_row_dependence": _parse_boolean,
}
