"""A load in steps, and what came of each. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from loadtests.options import LoadTestError, positive


@dataclass(frozen=True, slots=True)
class Steps:
    """So many users, one number after the other, each for ``seconds``."""

    users: tuple[int, ...]
    seconds: float

    def at(self, elapsed_s: float) -> int | None:
        """The index of the step that runs ``elapsed_s`` after the start; None after the last."""
        index = int(elapsed_s // self.seconds)
        return index if index < len(self.users) else None


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything since the test began: counts, and how many requests took each number of milliseconds."""

    requests: int = 0
    failures: int = 0
    response_times: Mapping[int, int] | None = None

    def since(self, earlier: "Totals") -> "Totals":
        """What came after ``earlier``."""
        before = earlier.response_times or {}
        times = {ms: count - before.get(ms, 0) for ms, count in (self.response_times or {}).items()}
        return Totals(self.requests - earlier.requests, self.failures - earlier.failures, times)

    def percentile(self, share: float) -> int | None:
        """The milliseconds that ``share`` of the requests took at most; None without requests."""
        times = self.response_times or {}
        wanted, seen = share * sum(times.values()), 0
        for ms in sorted(times):
            seen += times[ms]
            if times[ms] and seen >= wanted:
                return ms
        return None


def read_steps(users: str, seconds: str) -> Steps:
    """The steps, from options. Raises LoadTestError."""
    numbers = users.split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise LoadTestError(f"--ramp: {users!r}: must be numbers of users, such as 1,4,16")
    return Steps(tuple(map(int, numbers)), positive("--step-seconds", seconds))
