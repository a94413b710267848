"""Which of the waiting requests run next, together. Pure: no clock, no lock, no thread.

Requests are served by priority level, and within one by arrival; but one that has waited past its patience, where that
delays it, comes behind all others of its level. The rule, in that order:

1. The first request decides: only requests with its batch key can join it, in turn, until one does not fit.
2. A batch that cannot grow runs at once: it is full, or the next request of its key does not fit, or its request is to
   share it with no other. It is full, too, at the rows beyond which each would take longer than in a smaller one.
3. A batch whose rows reach the largest preferred size runs at once, at that size.
4. Otherwise it waits until its oldest request has waited ``max_delay_s``, then runs as it is.

With preferred sizes, rule 4 first tries the largest preferred size that whole requests can fill exactly.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from preheat.scheduling.pending import BatchKey, LoneKey, Pending


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How batches may be formed. ``max_rows`` 1 with ``joins`` False: every request runs alone, whatever its rows.

    ``worthwhile``: the most rows to join for some batch keys, where more are possible but slower.
    """

    max_rows: int
    joins: bool = False
    preferred_rows: tuple[int, ...] = ()
    max_delay_s: float = 0.0
    worthwhile: Mapping[BatchKey, int] = field(default_factory=dict)

    def most_rows(self, key: BatchKey) -> int:
        """How many rows requests of ``key`` are joined to at most."""
        return self.worthwhile.get(key, self.max_rows) if self.worthwhile else self.max_rows


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do now.

    Run ``batch`` (if any), refuse ``expired``, and look again at ``look_again_s`` (None: on news only).
    """

    batch: list[Pending] = field(default_factory=list)
    expired: list[Pending] = field(default_factory=list)
    look_again_s: float | None = None


def choose(levels: Iterable[Iterable[Pending]], now_s: float, limits: BatchLimits) -> Choice:
    """Choose from ``levels`` of waiting requests, the highest priority first, each in order of arrival."""
    candidates: list[Pending] = []
    expired: list[Pending] = []
    rows, most, closed = 0, limits.max_rows, False
    expiries: list[float] = []
    for pending in _in_turn(levels, now_s):
        expires_s = pending.standing.expires_s
        if expires_s is not None and expires_s <= now_s:
            expired.append(pending)
            continue
        if expires_s is not None:
            expiries.append(expires_s)
        if not candidates:
            most = limits.most_rows(pending.batch_key)
        if not candidates or pending.batch_key == candidates[0].batch_key:
            if candidates and rows + pending.rows > most:
                closed = True
                break
            candidates.append(pending)
            rows += pending.rows
            if not limits.joins or rows >= most or isinstance(pending.batch_key, LoneKey):
                closed = True
                break
    if not candidates or closed:
        return Choice(candidates, expired)
    return _ripen(candidates, expired, now_s, limits, expiries)


def _in_turn(levels: Iterable[Iterable[Pending]], now_s: float) -> Iterator[Pending]:
    """The waiting requests in the order in which they are to be served."""
    for level in levels:
        delayed: list[Pending] = []
        for pending in level:
            yields_s = pending.standing.yields_s
            if yields_s is not None and yields_s <= now_s:
                delayed.append(pending)
            else:
                yield pending
        yield from delayed


def _ripen(
    candidates: list[Pending], expired: list[Pending], now_s: float, limits: BatchLimits, expiries: list[float]
) -> Choice:
    """Decide for a batch that could still grow: run it (rules 3 and 4), or wait; at most until the first expiry."""
    preferred = _fill_preferred(candidates, limits.preferred_rows)
    if preferred and sum(pending.rows for pending in preferred) == limits.preferred_rows[-1]:
        return Choice(preferred, expired)
    ripe_s = min(pending.arrived_s for pending in candidates) + limits.max_delay_s
    if ripe_s <= now_s:
        return Choice(preferred or candidates, expired)
    return Choice([], expired, min([ripe_s, *expiries]))


def _fill_preferred(candidates: list[Pending], preferred_rows: tuple[int, ...]) -> list[Pending]:
    """The longest run of the first candidates whose rows add up to a preferred size; empty if none does."""
    rows, longest = 0, 0
    for count, pending in enumerate(candidates, start=1):
        rows += pending.rows
        if rows in preferred_rows:
            longest = count
    return candidates[:longest]
