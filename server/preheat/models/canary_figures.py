"""What asking two versions the same has shown so far. Pure."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from preheat.models.comparison import Agreement, compare, has_single_values, is_floating
from preheat.tensors import Array


@dataclass(slots=True)
class Figures:
    """What was found so far, by output and by request.

    ``singles``: values of outputs that have one in each row, which are compared over all requests: by itself, one near
    zero that becomes another says nothing.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    agreements: dict[str, list[Agreement]] = field(default_factory=dict)
    singles: dict[str, list[tuple[Array, Array]]] = field(default_factory=dict)
    serving_s: list[float] = field(default_factory=list)
    candidate_s: list[float] = field(default_factory=list)

    @property
    def slowdown(self) -> float:
        """By the median of pairs, which one that was disturbed does not change."""
        pairs = zip(self.candidate_s, self.serving_s, strict=True)
        return statistics.median(candidate_s / max(serving_s, 1e-9) for candidate_s, serving_s in pairs)

    @property
    def samples(self) -> int:
        """How many requests were compared."""
        return self.kinds.total()

    def note(self, name: str, expected: Array | None, actual: Array | None, found: Agreement, *, batched: bool) -> None:
        """Add what was ``found`` of output ``name``, in one request."""
        single = expected is not None and is_floating(expected) and has_single_values(expected, batched=batched)
        if expected is None or actual is None or found.problem or not single:
            self.agreements.setdefault(name, []).append(found)
        else:
            self.singles.setdefault(name, []).append((expected.reshape(-1, 1), actual.reshape(-1, 1)))

    def found(self) -> dict[str, list[Agreement]]:
        """How far each output agrees."""
        found = {name: list(each) for name, each in self.agreements.items()}
        for name, pairs in self.singles.items():
            expected, actual = (np.concatenate(each) for each in zip(*pairs, strict=True))
            found.setdefault(name, []).append(compare(expected, actual, batched=True))
        return found

    def tell(self) -> str:
        """All of it in one line. There has to be a sample."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        outputs = "; ".join(f"'{name}' {_tell(found)}" for name, found in self.found().items())
        return f"{counts} request{'s' * (self.samples != 1)}: {outputs}; {self.slowdown:.2f} times the time"


def _tell(found: Sequence[Agreement]) -> str:
    bad = sum(bool(each.problem) for each in found)
    if bad:
        return f"cannot be compared in {bad} of {len(found)}"
    cosines = [each.cosine for each in found]
    return (
        f"least cosine {min(cosines):.4f}, mean {statistics.fmean(cosines):.4f}, "
        f"largest difference {max(each.difference for each in found):.2%}"
    )
