"""Where a network falls apart into several graphs, with Python in between, and how that is told."""

import re
from collections import Counter
from collections.abc import Sequence

import torch._dynamo.utils

_PLACE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_CONTEXT = re.compile(r"Developer debug context: (?P<context>.+)")


def graph_breaks() -> Counter[str]:
    """The reasons that torch gives for all graph breaks of this process so far, and how often each was one."""
    return Counter(torch._dynamo.utils.counters["graph_break"])


def summarize(reasons: Sequence[str], *, limit: int = 5) -> str:
    """The reasons that torch gives, which are pages long, in one line."""
    short = list(dict.fromkeys(_first_words(reason) for reason in reasons))
    more = f"; and {len(short) - limit} more" if len(short) > limit else ""
    return "; ".join(short[:limit]) + more


def place(text: str) -> str:
    """Where in somebody's code it was, as far as an error of torch's says: `` at model.py:12``."""
    found = _PLACE.findall(text)
    return f" at {found[-1][0]}:{found[-1][1]}" if found else ""


def _first_words(reason: str) -> str:
    """What was wrong, and with what."""
    context = _CONTEXT.search(reason)
    told = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return f"{told} ({context['context'].strip()})" if context else told
