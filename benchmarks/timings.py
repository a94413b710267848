"""What was timed, as a row; and what a server has loaded, as its log has it. Pure."""

import re
import statistics
from collections.abc import Sequence

from benchmarks.report import Row

_BEGINS = re.compile(r"(\S+)/\d+ begins to load")


def loads(log: str) -> list[str]:
    """The models that were loaded, in order, as the server's log has it."""
    return _BEGINS.findall(log)


def summary(what: str, took_s: Sequence[float]) -> Row:
    """A row of what was timed so often."""
    ordered = sorted(took_s)
    return {
        "what": what,
        "times": len(ordered),
        "median ms": round(statistics.median(ordered) * 1e3, 2),
        # Of a few it is the slowest.
        "p99": round(ordered[int(0.99 * (len(ordered) - 1) + 0.5)] * 1e3, 2),
        "slowest": round(ordered[-1] * 1e3, 2),
    }
