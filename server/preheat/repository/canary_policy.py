"""What a new version has to show before it takes over: the keys ``preheat.canary.*`` of a model's parameters."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

DEFAULT_MIN_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class CanaryPolicy:
    """How a new version is tried against the one that serves.

    ``samples`` requests are asked of both; live ones, if so many come within ``seconds``, else stored ones too. Of each
    output (of ``outputs``, or all) the cosine to the other's is to be ``min_cosine`` at least, and no value is to
    differ by more than ``tolerance`` of the largest; None: that does not matter. The median of what it takes is to be
    at most ``max_slowdown`` times the other's.
    """

    samples: int = 32
    seconds: float = 10.0
    min_cosine: float | None = None
    tolerance: float | None = None
    max_slowdown: float = 1.5
    outputs: tuple[str, ...] = ()


def make_canary_policy(values: Mapping[str, object]) -> CanaryPolicy | None:
    """The policy of parsed ``values``; None if there are none, for then nothing is tried."""
    if not values:
        return None
    policy = CanaryPolicy(**values)  # type: ignore[arg-type]
    if policy.min_cosine is None and policy.tolerance is None:
        return replace(policy, min_cosine=DEFAULT_MIN_COSINE)
    return policy


def parse_canary(key: str, text: str) -> object:
    """The value of ``preheat.canary.KEY``. Raises ValueError."""
    parse = _PARSERS.get(key)
    if parse is None:
        raise ValueError(f"there is no such key; there are {', '.join(_PARSERS)}")
    return parse(text)


def _samples(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= 10_000:
        raise ValueError("must be a whole number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 86400:
        raise ValueError("must be seconds, from 0 to 86400")
    return value


def _cosine(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise ValueError("must be above 0 and up to 1, such as 0.99")
    return value


def _tolerance(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ValueError("must be a share from 0, such as 0.05")
    return value


def _slowdown(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ValueError("must be above 0: how many times as long it may take, such as 1.5")
    return value


def _outputs(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError("must be names of outputs, separated by commas")
    return names


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "samples": _samples,
    "seconds": _seconds,
    "min_cosine": _cosine,
    "tolerance": _tolerance,
    "max_slowdown": _slowdown,
    "outputs": _outputs,
}
