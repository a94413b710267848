"""Which batches are worth joining requests for: those whose rows cost no more than in smaller ones. Pure."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeAlias

from preheat.scheduling.pending import BatchKey
from preheat.scheduling.warmup import WarmupBatch

# By how much a row may cost more than in the best batch. Below that it is noise, or not worth a smaller batch.
_MARGIN = 0.15
# A run may have been disturbed, so that the least of so many counts.
_RUNS = 3
# A batch that is done sooner costs less than what is around it, for which fewer batches are better.
_LEAST_S = 0.002

# Seconds that batches take, by their rows.
Times: TypeAlias = Mapping[int, float]


def time_batches(
    batches: Sequence[WarmupBatch], seconds: Sequence[float], run: Callable[[WarmupBatch], float], *, pads: bool
) -> dict[BatchKey, Times]:
    """What batches take, for each batch key.

    ``seconds`` is what each of ``batches`` took. Where that speaks against a larger batch, all sizes of its key are
    measured again by ``run``, which returns seconds: a single time may mean nothing. ``pads``: smaller batches are
    padded to these sizes, so that each is measured twice at least; but for those that are done in no time.
    """
    sizes: dict[BatchKey, dict[int, tuple[WarmupBatch, float]]] = {}
    for batch, taken in zip(batches, seconds, strict=True):
        if batch.key is not None:
            sizes.setdefault(batch.key, {})[len(batch.parts)] = batch, taken
    found: dict[BatchKey, Times] = {}
    for key, timed in sizes.items():
        least = {rows: taken for rows, (_, taken) in timed.items()}
        for runs in range(_RUNS):
            if _all_pay(least) and (runs > 0 or not pads or len(least) == 1 or max(least.values()) < _LEAST_S):
                break
            for rows, (batch, _) in timed.items():
                least[rows] = min(least[rows], run(batch))
        found[key] = least
    return found


def least_times(reports: Sequence[Mapping[BatchKey, Times]]) -> dict[BatchKey, Times]:
    """The least of what several instances measured of the same batches: each may have been disturbed."""
    return {
        key: {rows: min(report[key][rows] for report in reports) for rows in times}
        for key, times in reports[0].items()
        if all(report.get(key, {}).keys() == times.keys() for report in reports)
    }


def find_worthwhile(times: Mapping[BatchKey, Times]) -> dict[BatchKey, int]:
    """The most rows to join for each batch key, where that is less than the most there are."""
    return {key: worthwhile_rows(least) for key, least in times.items() if not _largest_pays(least)}


def worthwhile_rows(seconds: Times) -> int:
    """The largest of the batches, by rows, whose ``seconds`` per row are no more than those of the best, or nearly."""
    costs = {rows: taken / rows for rows, taken in seconds.items()}
    most = min(costs.values()) * (1 + _MARGIN)
    return max(rows for rows, cost in costs.items() if cost <= most)


def count_worthwhile(rows: Iterable[int], seconds: Times) -> int:
    """How many requests of so many ``rows``, from the first on, are best run as one batch.

    It is padded to the next of the sizes in ``seconds``, so that a few rows more may cost as much as many. The most
    requests whose rows cost no more than in the best such batch, or nearly; all, if that is done in no time.
    """
    sizes = sorted(seconds)
    totals = list(accumulate(rows))
    padded = [bisect_left(sizes, total) for total in totals]
    if padded[-1] == len(sizes) or seconds[sizes[padded[-1]]] < _LEAST_S:
        return len(totals)
    costs = [seconds[sizes[size]] / total for size, total in zip(padded, totals, strict=True)]
    most = min(costs) * (1 + _MARGIN)
    return max(count for count, cost in enumerate(costs, start=1) if cost <= most)


def _largest_pays(seconds: Times) -> bool:
    """Whether the largest batch does: its rows cost no more, or it is done in no time."""
    most = max(seconds)
    return seconds[most] < _LEAST_S or worthwhile_rows(seconds) == most


def _all_pay(seconds: Times) -> bool:
    """Whether every batch does, beside the smaller ones."""
    return all(_largest_pays({rows: seconds[rows] for rows in seconds if rows <= most}) for most in seconds)


def tell_worthwhile(times: Mapping[BatchKey, Times], *, pads: bool) -> list[str]:
    """What follows from ``times``, in words: a line for each key of which something does."""
    worthwhile = find_worthwhile(times)
    lines = [
        f"no more than {rows} rows are joined ({_words(key)}): in larger batches each takes longer"
        for key, rows in worthwhile.items()
    ]
    if pads:
        for key, least in times.items():
            sizes = [rows for rows in sorted(least) if rows <= worthwhile.get(key, rows)]
            lines += [
                f"{smaller + 1}{f' to {first - 1}' if first - 1 > smaller + 1 else ''} rows are not padded to {larger} "
                f"({_words(key)}), but run in smaller batches: that takes less time"
                for smaller, larger in pairwise(sizes)
                if (first := _first_padded(smaller, larger, least)) > smaller + 1
            ]
    return lines


def _first_padded(smaller: int, larger: int, seconds: Times) -> int:
    """From how many rows on batches of requests of one row are padded to ``larger``."""
    counts = range(smaller + 1, larger)
    return next((rows for rows in counts if count_worthwhile([1] * rows, seconds) == rows), larger)


def _words(key: BatchKey) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in key)
