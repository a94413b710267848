"""Which batches are worth joining requests for: those that cost no more per row than smaller ones. Pure."""

from collections.abc import Callable, Mapping, Sequence

from preheat.scheduling.pending import BatchKey
from preheat.scheduling.warmup import WarmupBatch

# By how much a row may cost more than in the best batch. Below that it is noise, or not worth a smaller batch.
_MARGIN = 0.15
# A run may have been disturbed, so that the least of so many counts.
_RUNS = 3
# A batch that is done sooner costs less than what is around it, for which fewer batches are better.
_LEAST_S = 0.002


def worthwhile_rows(seconds: Mapping[int, float]) -> int:
    """The largest of the batches, by rows, whose ``seconds`` per row are no more than those of the best, or nearly."""
    costs = {rows: taken / rows for rows, taken in seconds.items()}
    most = min(costs.values()) * (1 + _MARGIN)
    return max(rows for rows, cost in costs.items() if cost <= most)


def find_worthwhile(
    batches: Sequence[WarmupBatch], seconds: Sequence[float], run: Callable[[WarmupBatch], float]
) -> dict[BatchKey, int]:
    """The most rows to join for each batch key, where that is less than what was warmed.

    ``seconds`` is what each of ``batches`` took. Where that speaks against a larger batch, all sizes of its key are
    measured again by ``run``, which returns seconds: a single time may mean nothing.
    """
    sizes: dict[BatchKey, dict[int, tuple[WarmupBatch, float]]] = {}
    for batch, taken in zip(batches, seconds, strict=True):
        if batch.key is not None:
            sizes.setdefault(batch.key, {})[len(batch.parts)] = batch, taken
    found = {}
    for key, timed in sizes.items():
        least = {rows: taken for rows, (_, taken) in timed.items()}
        for _ in range(_RUNS):
            if _worth_it(least):
                break
            for rows, (batch, _) in timed.items():
                least[rows] = min(least[rows], run(batch))
        if not _worth_it(least):
            found[key] = worthwhile_rows(least)
    return found


def _worth_it(seconds: Mapping[int, float]) -> bool:
    """Whether the largest batch is: its rows cost no more, or it is done in no time."""
    most = max(seconds)
    return seconds[most] < _LEAST_S or worthwhile_rows(seconds) == most


def tell_worthwhile(worthwhile: Mapping[BatchKey, int]) -> list[str]:
    """What :func:`find_worthwhile` found, in words: a line for each key."""
    return [
        f"no more than {rows} rows are joined ({', '.join(f'{name} {list(shape)}' for name, shape in key)}): "
        "in larger batches each takes longer"
        for key, rows in worthwhile.items()
    ]
