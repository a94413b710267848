"""Where a request stands in its model's queue: at which priority, and for how long. Pure: any thread.

The rules are Triton's (``ModelQueuePolicy`` and ``ModelDynamicBatching`` of its model_config.proto), with one addition:
a model without a timeout of its own may let requests bring one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from preheat.errors import InvalidRequest
from preheat.messages import Parameter

PRIORITY = "priority"
TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """One priority level's queue.

    ``max_requests`` 0 is the server's default. A request that has waited ``timeout_s`` (None: for ever) is refused, or
    if ``delays``, has to let all others of its level go first. ``allows_override``: requests may ask for less.
    """

    max_requests: int = 0
    timeout_s: float | None = None
    delays: bool = False
    allows_override: bool = False

    def patience_s(self, asked_s: float | None) -> float | None:
        """How long a request that asks for ``asked_s`` may wait."""
        if asked_s is None or not self.allows_override:
            return self.timeout_s
        return asked_s if self.timeout_s is None else min(asked_s, self.timeout_s)


class Standing(NamedTuple):
    """One request's place: its ``level``, 0 first.

    Once ``expires_s`` has passed it is refused; once ``yields_s`` has, others of its level go first.
    """

    level: int = 0
    expires_s: float | None = None
    yields_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueuePolicies:
    """The levels of a model's queue, the highest priority first, and the one of requests that name none."""

    levels: tuple[QueuePolicy, ...] = (QueuePolicy(),)
    default_level: int = 0

    def stand(
        self, parameters: Mapping[str, Parameter], *, arrived_s: float, deadline_s: float | None = None
    ) -> Standing:
        """The place of a request with these ``parameters`` and call deadline.

        Raises InvalidRequest for a ``priority`` or ``timeout`` that is none.
        """
        # Most requests ask for nothing, and wait as long as it takes.
        asks = bool(parameters)
        level = self._level(_count(parameters, PRIORITY)) if asks else self.default_level
        policy = self.levels[level]
        asked_us = _count(parameters, TIMEOUT) if asks else 0
        patience_s = policy.patience_s(asked_us / 1e6 if asked_us else None)
        if patience_s is None:
            return Standing(level, deadline_s)
        if policy.delays:
            return Standing(level, deadline_s, arrived_s + patience_s)
        ends_s = arrived_s + patience_s
        return Standing(level, ends_s if deadline_s is None else min(ends_s, deadline_s))

    def _level(self, priority: int) -> int:
        """1 is the highest priority; 0, and what is beyond the lowest, is the default."""
        return priority - 1 if 1 <= priority <= len(self.levels) else self.default_level


def _count(parameters: Mapping[str, Parameter], key: str) -> int:
    """A parameter that is a whole number from 0; 0 where it is not set."""
    value = parameters.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        unit = " of microseconds" if key == TIMEOUT else ""
        raise InvalidRequest(f"request parameter '{key}': {value!r}: must be a whole number{unit} from 0")
    return value
