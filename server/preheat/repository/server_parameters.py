"""The server's own keys among a model's ``parameters``: those that begin with ``preheat.``."""

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preheat.backend import Dimension, Outside
from preheat.errors import InvalidConfig
from preheat.repository.canary_policy import CanaryPolicy, make_canary_policy, parse_canary

_PREFIX = "preheat."
_RANGE = re.compile(r"(\d+)\.\.(\d*)(?:/(\d+))?")


class Swap(enum.Enum):
    """How a version makes way for another: both are loaded for a while, or the old one is freed first."""

    SIDE_BY_SIDE = "side_by_side"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class ServerParameters:
    """What a model's configuration asks of the server itself.

    ``buckets``: batch sizes to warm (and to pad to, for engines that specialize on shape); empty is powers of two.
    ``size_buckets``: sizes to warm and to pad to, by dimension. ``pads``: what inputs are padded with, as written.
    ``outside_buckets``: what becomes of sizes beyond them. ``padding_tolerance``: by how much of an output's largest
    value padding may change it. ``threads``: intra-op threads of each instance; None shares the cores out evenly.
    ``row_independent`` False: answers depend on batch peers; ``accept_row_dependence``: batch them all the same.
    ``axis_names``: names for a tensor's axes. ``dimensions``: bounds of named axes. ``swap``: how a version makes way.
    ``canary``: what one has to show before it takes over; None: nothing.
    """

    buckets: tuple[int, ...] = ()
    size_buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pads: Mapping[str, str] = field(default_factory=dict)
    outside_buckets: Outside | None = None
    padding_tolerance: float | None = None
    threads: int | None = None
    row_independent: bool | None = None
    accept_row_dependence: bool = False
    axis_names: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    swap: Swap = Swap.SIDE_BY_SIDE
    canary: CanaryPolicy | None = None


def parse_server_parameters(values: Mapping[str, str], file: Path) -> tuple[ServerParameters, dict[str, str]]:
    """Split a model's parameters into the server's, parsed, and the backend's, unread. Raises InvalidConfig."""
    fields: dict[str, object] = {}
    families: dict[str, dict[str, object]] = {family.field: {} for family in _FAMILIES.values()}
    for key in (key for key in values if key.startswith(_PREFIX)):
        kind, dot, subject = key.removeprefix(_PREFIX).partition(".")
        try:
            if kind in _FAMILIES and subject:
                family = _FAMILIES[kind]
                families[family.field][subject] = family.parse(subject, values[key])
            elif kind in _PARSERS and not dot:
                fields[kind] = _PARSERS[kind](values[key])
            else:
                raise InvalidConfig(f"{file}: parameters: {key}: unknown parameter; the server's are {_allowed()}")
        except ValueError as exc:
            raise InvalidConfig(f"{file}: parameters: {key}: {values[key]!r}: {exc}") from exc
    canary = make_canary_policy(families.pop("canary"))
    if canary is not None and fields.get("swap") is Swap.REPLACE:
        raise InvalidConfig(
            f"{file}: parameters: preheat.swap: replace: frees a version before the next one is there, so it cannot be "
            "compared to it; leave preheat.canary.* out, or set side_by_side"
        )
    rest = {key: value for key, value in values.items() if not key.startswith(_PREFIX)}
    return ServerParameters(**families, **fields, canary=canary), rest  # type: ignore[arg-type]


def _allowed() -> str:
    families = (f"{kind}.{family.subject}" for kind, family in _FAMILIES.items())
    return ", ".join(_PREFIX + name for name in (*_PARSERS, *families))


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


def _parse_outside(text: str) -> Outside:
    try:
        return Outside(text)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(each.value for each in Outside)}") from None


def _parse_swap(text: str) -> Swap:
    try:
        return Swap(text)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(each.value for each in Swap)}") from None


def _parse_tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError("must be a share from 0 up to 1, such as 0.01")
    return value


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "buckets": _parse_buckets,
    "threads": _parse_count,
    "accept_row_dependence": _parse_boolean,
    "row_independent": _parse_boolean,
    "outside_buckets": _parse_outside,
    "padding_tolerance": _parse_tolerance,
    "swap": _parse_swap,
}


@dataclass(frozen=True, slots=True)
class _Family:
    """Keys that go on with a name, which says whose they are: ``parse(name, text)``."""

    field: str
    subject: str
    parse: Callable[[str, str], object]


_FAMILIES: Mapping[str, _Family] = {
    "shape": _Family("axis_names", "TENSOR", lambda _, text: _parse_axis_names(text)),
    "dimension": _Family("dimensions", "NAME", _parse_dimension),
    "buckets": _Family("size_buckets", "NAME", lambda _, text: _parse_buckets(text)),
    "pad": _Family("pads", "TENSOR", lambda _, text: text),
    "canary": _Family("canary", "KEY", parse_canary),
}
