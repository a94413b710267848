"""Whether the machine itself has slow moments, which any latency measured on it then has too.

    python -m benchmarks.episodes

Without a server: one process on each core repeats the same fraction of a millisecond of plain Python. Prints when
repetitions took several times the median, and what share of the time that was. Run it while nothing else runs.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass

_ADDITIONS = 8_000
# So many times the median is no jitter.
_SLOW = 4
# Slow repetitions this close to each other are one episode.
_APART_S = 0.2


@dataclass(slots=True)
class Episode:
    """Seconds from the beginning of the measurement, and how many of them its slow repetitions took."""

    began_s: float
    ended_s: float
    slow_s: float


def main() -> None:
    """Measure, on all cores at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure (default 10)")
    seconds = parser.parse_args().seconds
    cores = sorted(os.sched_getaffinity(0))
    with multiprocessing.Pool(len(cores)) as pool:
        for core, taken_s in zip(cores, pool.starmap(_repeat, [(core, seconds) for core in cores]), strict=True):
            found = episodes(taken_s)
            share = sum(each.slow_s for each in found) / sum(taken_s)
            print(
                f"core {core}: median {statistics.median(taken_s) * 1e3:.2f} ms, {share:.1%} of the time in slow ones"
            )
            print("  " + ", ".join(f"{each.slow_s * 1e3:.0f} ms at {each.began_s:.1f} s" for each in found))


def episodes(taken_s: list[float]) -> list[Episode]:
    """The times when repetitions, one after another, took several times the median."""
    least_s = _SLOW * statistics.median(taken_s)
    found: list[Episode] = []
    at_s = 0.0
    for taken in taken_s:
        began_s, at_s = at_s, at_s + taken
        if taken <= least_s:
            continue
        if not found or began_s - found[-1].ended_s > _APART_S:
            found.append(Episode(began_s, at_s, 0.0))
        found[-1].ended_s = at_s
        found[-1].slow_s += taken
    return found


def _repeat(core: int, seconds: float) -> list[float]:
    """What each repetition took, on ``core``, for so many ``seconds``."""
    os.sched_setaffinity(0, {core})
    taken_s: list[float] = []
    last_s = began_s = time.perf_counter()
    while last_s < began_s + seconds:
        total = 0
        for number in range(_ADDITIONS):
            total += number
        now_s = time.perf_counter()
        taken_s.append(now_s - last_s)
        last_s = now_s
    return taken_s


if __name__ == "__main__":
    main()
