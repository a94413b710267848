"""Whether a load test has passed: what came of it against what was asked for. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many requests may fail: ``number`` of them or, for a share, ``number`` in a hundred."""

    number: float
    is_share: bool

    def of(self, requests: int) -> float:
        """How many of ``requests`` may fail."""
        return requests * self.number / 100 if self.is_share else self.number

    def __str__(self) -> str:
        return f"{self.number:g}{'%' if self.is_share else ''}"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a test must keep to; None for no limit."""

    p99_ms: float | None
    max_failures: Allowance
    min_rps: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a test. ``requests`` counts the failed ones too, and ``p99_ms`` is over all; None without any."""

    requests: int
    failures: int
    duration_s: float
    p99_ms: float | None

    @property
    def answered_per_s(self) -> float:
        """Good answers a second."""
        return (self.requests - self.failures) / self.duration_s if self.duration_s else 0.0


def broken(thresholds: Thresholds, outcome: Outcome) -> Iterator[str]:
    """A line for each threshold that was broken, and by how much."""
    if not outcome.requests:
        yield "no request was made"
        return
    if thresholds.p99_ms is not None and outcome.p99_ms is not None and outcome.p99_ms > thresholds.p99_ms:
        excess = outcome.p99_ms - thresholds.p99_ms
        yield f"p99 is {outcome.p99_ms:g} ms, {excess:g} ms above the {thresholds.p99_ms:g} ms of --p99-ms"
    allowed = thresholds.max_failures.of(outcome.requests)
    if outcome.failures > allowed:
        yield (
            f"{outcome.failures} of {outcome.requests} requests failed, {outcome.failures - allowed:g} more than "
            f"--max-failures {thresholds.max_failures} allows"
        )
    if thresholds.min_rps is not None and outcome.answered_per_s < thresholds.min_rps:
        shortfall = thresholds.min_rps - outcome.answered_per_s
        yield (
            f"{outcome.answered_per_s:.1f} requests were answered each second, {shortfall:.1f} fewer than the "
            f"{thresholds.min_rps:g} of --min-rps"
        )
