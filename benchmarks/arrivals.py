"""When requests arrive that do not wait for answers, and what came of each. Pure."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests to one model, sent in turn, ``rate`` a second; none of them if that is 0."""

    requests: Sequence[bytes]
    rate: float


class Answer(NamedTuple):
    """What came of one request of a stream, both by number; on the clock of ``time.perf_counter``, which all share.

    ``failure`` is why there is no answer; empty if there is one.
    """

    stream: int
    request: int
    due_s: float
    sent_s: float
    done_s: float
    version: str
    output: bytes
    failure: str


class Arrival(NamedTuple):
    """When a request is due, in seconds from the start, of which stream, and how many of it came before."""

    due_s: float
    stream: int
    number: int


def arrivals(rates: Sequence[float], *, even: bool, seed: int) -> Iterator[Arrival]:
    """The schedule of streams with these rates, without end: at even distances, or at random ones (Poisson)."""
    dice = Random(seed)  # noqa: S311 - nothing is secret here
    due = [Arrival(0.0, stream, 0) for stream, rate in enumerate(rates) if rate]
    heapq.heapify(due)
    while due:
        yield (first := due[0])
        rate, number = rates[first.stream], first.number + 1
        due_s = number / rate if even else first.due_s + dice.expovariate(rate)
        heapq.heapreplace(due, Arrival(due_s, first.stream, number))
