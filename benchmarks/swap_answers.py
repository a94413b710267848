"""What came of requests while artifacts were replaced: whose each answer is, whether it may be, how long it took."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from benchmarks.arrivals import Answer
from benchmarks.report import Row
from benchmarks.swap_artifacts import STEP, Artifact
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Span: TypeAlias = tuple[float, float]

# How far an answer may be from its artifact's own reference, both at length 1. Of 8 bits it is a cosine of 0.99: what
# shares a batch with a row decides how the row is rounded.
TOLERANCES = {"fp32": 1e-3, "int8": 0.14}
MAIN, OTHER = 0, 1


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer: ``mark`` is how long its vector is, ``error`` how far from its artifact's; both NaN if unknown."""

    due_s: float
    sent_s: float
    done_s: float
    version: str
    mark: float
    kind: str
    error: float


@dataclass(slots=True)
class Served:
    """From when an artifact could have answered as a version, and until when requests could have been sent to it."""

    mark: float
    version: str
    since_s: float
    until_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Window:
    """Something was done, in words, from when until when it had come to rest."""

    what: str
    began_s: float
    ended_s: float

    @property
    def span(self) -> Span:
        """From when until when."""
        return (self.began_s, self.ended_s)


@dataclass(slots=True)
class Witness:
    """Takes answers. :meth:`take` belongs to the thread that they come on; others only read.

    ``references`` are what artifacts of a kind answer to each request, at length 1, ``echoes`` what the other model
    does. ``latest`` is the length of the answer to the request that was sent last, of those that were answered.
    """

    artifacts: Sequence[Artifact]
    references: Mapping[str, NDArray[np.float32]]
    echoes: Sequence[bytes]
    seen: list[Seen] = field(default_factory=list)
    failures: list[Answer] = field(default_factory=list)
    others: int = 0
    wrong_others: int = 0
    latest: float = 0.0
    _latest_sent_s: float = 0.0

    def take(self, answer: Answer) -> None:
        """Note an answer."""
        if answer.failure:
            self.failures.append(answer)
        elif answer.stream == OTHER:
            self.others += 1
            self.wrong_others += answer.output != self.echoes[answer.request]
        else:
            seen = self._look(answer)
            self.seen.append(seen)
            if seen.sent_s > self._latest_sent_s:
                self.latest, self._latest_sent_s = seen.mark, seen.sent_s

    def _look(self, answer: Answer) -> Seen:
        vector = np.frombuffer(answer.output, np.float32)
        mark, kind, error = float(np.linalg.norm(vector)), "", float("nan")
        artifact = next((each for each in self.artifacts if is_of(mark, each.mark)), None)
        if artifact is not None:
            kind = artifact.kind
            error = float(np.linalg.norm(vector / mark - self.references[kind][answer.request]))
        return Seen(answer.due_s, answer.sent_s, answer.done_s, answer.version, mark, kind, error)


@dataclass(slots=True)
class Expected:
    """Which artifacts may answer, and when: what is known of what was done. For one thread."""

    served: list[Served] = field(default_factory=list)
    absences: list[Span] = field(default_factory=list)

    def may(self, mark: float, version: int, now_s: float) -> None:
        """From now on, answers may also be of this one."""
        self.served.append(Served(mark, str(version), now_s))

    def only(self, mark: float, version: int, now_s: float) -> None:
        """This one has answered: requests that are sent from now on can go to nothing else."""
        for each in self.served:
            if (each.mark, each.version) != (mark, str(version)):
                each.until_s = min(each.until_s, now_s)

    def other_was_away(self, since_s: float, until_s: float) -> None:
        """The other model was deleted; what it was asked meanwhile was to fail."""
        self.absences.append((since_s, until_s))

    def explains(self, failure: Answer) -> bool:
        """Whether a request was to fail."""
        away = (since_s <= failure.done_s and failure.sent_s <= until_s for since_s, until_s in self.absences)
        return failure.stream == OTHER and any(away)

    def why_not(self, seen: Seen) -> str:
        """What is wrong with an answer; empty if nothing is."""
        there = [each for each in self.served if each.since_s <= seen.done_s and seen.sent_s <= each.until_s]
        same = [each for each in there if is_of(seen.mark, each.mark)]
        if not same:
            return f"of length {seen.mark:.3f}, when only {_listed(each.mark for each in there)} could be"
        if seen.version not in {each.version for each in same}:
            return f"of version {seen.version}, when it was {' or '.join(sorted({each.version for each in same}))}"
        # Not the other way round: of what is not known, nothing is right.
        if not seen.error <= TOLERANCES[seen.kind]:
            return f"{seen.error:.4f} from what {seen.kind} answers, allowed is {TOLERANCES[seen.kind]}"
        return ""


def is_of(length: float, mark: float) -> bool:
    """Whether a vector as long as this is one of the artifact's with that mark."""
    return abs(length - mark) < STEP / 4


def _listed(marks: Iterable[float]) -> str:
    return " or ".join(f"{mark:.2f}" for mark in sorted(set(marks)))


class Times:
    """When requests were due, and how long after that they were answered."""

    def __init__(self, seen: Sequence[Seen]) -> None:
        self._due_s: Floats = np.array([each.due_s for each in seen], np.float64)
        self._took_ms: Floats = np.array([(each.done_s - each.due_s) * 1e3 for each in seen], np.float64)

    def within(self, *spans: Span) -> Floats:
        """The milliseconds of those due within any of ``spans``."""
        chosen = np.zeros(len(self._due_s), bool)
        for began_s, ended_s in spans:
            chosen |= (self._due_s >= began_s) & (self._due_s < ended_s)
        return self._took_ms[chosen]


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests from ``began_s`` to ``ended_s``, and ``windows``, in order, in which something was done."""

    times: Times
    windows: Sequence[Window]
    began_s: float
    ended_s: float

    def quiet(self, *chosen: int) -> list[Span]:
        """The times without anything before and after each of the ``chosen`` windows."""
        edges = [self.began_s, *(edge for each in self.windows for edge in each.span), self.ended_s]
        gaps = list(zip(edges[::2], edges[1::2], strict=True))
        return [gaps[place] for place in sorted({place for each in chosen for place in (each, each + 1)})]

    def rows(self) -> list[Row]:
        """How long requests took, quiet and while things were done: all of them, and by what it was."""
        every = range(len(self.windows))
        groups = {"all while something is replaced": list(every)}
        for what in sorted({each.what for each in self.windows}):
            groups[what] = [number for number in every if self.windows[number].what == what]
        quiet = self.quiet(*every)
        return [_row("quiet", quiet, self.times.within(*quiet), None), *(self._row(*each) for each in groups.items())]

    def _row(self, what: str, chosen: Sequence[int]) -> Row:
        spans = [self.windows[number].span for number in chosen]
        return _row(what, spans, self.times.within(*spans), self.times.within(*self.quiet(*chosen)))

    def series(self) -> list[Row]:
        """A row for each window, with the 99th percentiles of it and of the quiet before and after."""
        rows: list[Row] = []
        for number, each in enumerate(self.windows):
            during, before, after = (
                _percentile(self.times.within(span), 99) for span in (each.span, *self.quiet(number))
            )
            rows.append(
                {
                    "what": each.what,
                    "at s": round(each.began_s - self.began_s, 1),
                    "s": round(each.ended_s - each.began_s, 1),
                    "p99 ms": during,
                    "before": before,
                    "after": after,
                }
            )
        return rows

    def course(self, slot_s: float) -> tuple[list[float], dict[str, list[float]]]:
        """By time: the 50th and 99th percentiles of each ``slot_s``, and whether something was being replaced."""
        times_s = [float(each) for each in np.arange(0.0, self.ended_s - self.began_s, slot_s)]
        slots = [(self.began_s + at_s, self.began_s + at_s + slot_s) for at_s in times_s]
        taken = [self.times.within(slot) for slot in slots]
        courses = {f"p{percent} ms": [_percentile(each, percent) or 0.0 for each in taken] for percent in (50, 99)}
        busy = [
            float(any(each.began_s < end and begin < each.ended_s for each in self.windows)) for begin, end in slots
        ]
        return times_s, courses | {"replacing": busy}


def _row(what: str, spans: Sequence[Span], took_ms: Floats, beside_ms: Floats | None) -> Row:
    p99 = _percentile(took_ms, 99)
    quiet = None if beside_ms is None else _percentile(beside_ms, 99)
    return {
        "while": what,
        "times": len(spans),
        "seconds each": round(sum(end - begin for begin, end in spans) / len(spans), 1),
        "requests": len(took_ms),
        "p50 ms": _percentile(took_ms, 50),
        "p99 ms": p99,
        "max ms": _percentile(took_ms, 100),
        "p99 of the quiet beside it": quiet,
        "times that": None if p99 is None or not quiet else round(p99 / quiet, 2),
    }


def _percentile(took_ms: Floats, percent: int) -> float | None:
    return round(float(np.percentile(took_ms, percent)), 1) if len(took_ms) else None
