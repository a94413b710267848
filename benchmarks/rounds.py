"""Comparing by turns: what a machine does to one contender within a round, it does to the others too."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cores import CoreMeter, CoreUse

# Cores that others may use beside a run before it counts as disturbed.
MOST_OTHER_CORES = 0.2


@dataclass(frozen=True, slots=True)
class Latencies:
    """What a client saw: requests (or rows) a second, and how long they took."""

    rps: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement, and who used the cores meanwhile."""

    seen: Latencies
    cores: CoreUse

    @property
    def disturbed(self) -> bool:
        """Whether others used too much of the machine."""
        return self.cores.other > MOST_OTHER_CORES


@dataclass(frozen=True, slots=True)
class Summary:
    """A contender's runs, one of each round that counts. ``disturbed``: how many rounds were measured in vain.

    ``quiet`` False: every round was disturbed, and these are all of them.
    """

    runs: Sequence[Run]
    disturbed: int
    quiet: bool

    @property
    def rps(self) -> float:
        """Requests a second, the median."""
        return statistics.median(run.seen.rps for run in self.runs)

    @property
    def p50_ms(self) -> float:
        """The median latency, the median of the rounds."""
        return statistics.median(run.seen.p50_ms for run in self.runs)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile, the median of the rounds."""
        return statistics.median(run.seen.p99_ms for run in self.runs)

    @property
    def cores(self) -> CoreUse:
        """Cores in use, medians; of others the most that there was."""
        return CoreUse(
            statistics.median(run.cores.server for run in self.runs),
            statistics.median(run.cores.client for run in self.runs),
            max(run.cores.other for run in self.runs),
        )

    def times(self, other: "Summary") -> float:
        """How many times the requests a second of ``other``: the median of the rounds' ratios."""
        pairs = zip(self.runs, other.runs, strict=True)
        return statistics.median(mine.seen.rps / theirs.seen.rps for mine, theirs in pairs)

    def columns(self) -> dict[str, str | int | float]:
        """What a table says of it."""
        return {
            "requests/s": round(self.rps, 1),
            "p50 ms": round(self.p50_ms, 3),
            "p99 ms": round(self.p99_ms, 3),
            **self.load(),
        }

    def load(self) -> dict[str, str | int | float]:
        """What a table says of the cores and of the rounds."""
        cores = self.cores
        return {
            "server cores": round(cores.server, 2),
            "client cores": round(cores.client, 2),
            "other cores": round(cores.other, 2),
            "rounds": self._rounds(),
        }

    def _rounds(self) -> str:
        if not self.quiet:
            return f"{len(self.runs)}, all disturbed"
        return f"{len(self.runs)} of {len(self.runs) + self.disturbed}"


def measured(server: int | None, ask: Callable[[], Latencies]) -> Run:
    """Run ``ask``, and see who uses the cores. ``server`` is the process that serves."""
    meter = CoreMeter(server)
    seen = ask()
    return Run(seen, meter.read())


def interleave(what: str, works: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, Summary]:
    """Run all ``works`` in turn, round after round, until ``rounds`` were undisturbed or as many more were not.

    A round counts as a whole or not at all, so that ratios are of runs that followed one another.
    """
    quiet: list[Mapping[str, Run]] = []
    disturbed: list[Mapping[str, Run]] = []
    while len(quiet) < rounds and len(disturbed) < rounds:
        runs = {name: _noted(f"{what}, {name}", work) for name, work in works.items()}
        (disturbed if any(run.disturbed for run in runs.values()) else quiet).append(runs)
    counted = quiet or disturbed
    return {name: Summary([runs[name] for runs in counted], len(disturbed), bool(quiet)) for name in works}


def _noted(what: str, work: Callable[[], Run]) -> Run:
    run = work()
    mark = f", disturbed: others used {run.cores.other:.2f} cores" if run.disturbed else ""
    print(f"{what}: {run.seen.rps:.1f}/s, p50 {run.seen.p50_ms:.2f} ms{mark}", file=sys.stderr, flush=True)
    return run
