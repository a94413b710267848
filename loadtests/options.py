"""What a load test is asked to do: its options on the command line and in Locust's page, checked.

Locust's page hands back as text what was typed there, so all options are text until they are read here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.thresholds import Allowance, Thresholds

_OPTIONS = (
    ("--model", "", "the model to ask"),
    ("--model-version", "", "its version; by default the server chooses"),
    ("--batch", "1", "rows of each request, for a model that batches"),
    ("--shape", "", "shapes of inputs, without the batch axis, such as 'INPUT0:3,224,224 INPUT1:16'"),
    ("--variable-size", "1", "the size of every variable dimension that --shape does not give"),
    ("--input-data", "", "a file of requests in perf_analyzer's JSON format; by default they are made up"),
    ("--deadline-seconds", "10", "the gRPC deadline of each request; one that misses it has failed"),
    ("--p99-ms", "", "fail if the 99th percentile of all requests is above this many milliseconds"),
    ("--max-failures", "0", "fail if more requests than this fail: a count or, with a percent sign, a share of all"),
    ("--min-rps", "", "fail if fewer requests than this are answered each second"),
)


class LoadTestError(Exception):
    """The test cannot be run as asked; the text says why, and what would be right."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What to send. ``shapes`` are by input, without the batch axis."""

    model: str
    model_version: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    variable_size: int
    input_data: Path | None
    deadline_s: float


def add_options(parser: Any) -> None:
    """Add the options to Locust's parser. Not as a group, of which its page would know nothing."""
    for flag, default, text in _OPTIONS:
        parser.add_argument(flag, default=default, metavar="VALUE", help=text)


def read_options(arguments: Any) -> LoadOptions:
    """What to send, from parsed arguments. Raises LoadTestError."""
    if not arguments.model:
        raise LoadTestError("--model: must name the model to ask")
    return LoadOptions(
        model=arguments.model,
        model_version=arguments.model_version,
        batch=_whole("--batch", arguments.batch),
        shapes=_shapes(arguments.shape),
        variable_size=_whole("--variable-size", arguments.variable_size),
        input_data=Path(arguments.input_data) if arguments.input_data else None,
        deadline_s=positive("--deadline-seconds", arguments.deadline_seconds),
    )


def read_thresholds(arguments: Any) -> Thresholds:
    """What the test must keep to, from parsed arguments. Raises LoadTestError."""
    return Thresholds(
        p99_ms=positive("--p99-ms", arguments.p99_ms) if arguments.p99_ms else None,
        max_failures=_allowance(arguments.max_failures),
        min_rps=positive("--min-rps", arguments.min_rps) if arguments.min_rps else None,
    )


def positive(flag: str, text: str) -> float:
    """A number above 0. Raises LoadTestError, which names ``flag``."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise LoadTestError(f"{flag}: {text!r}: must be a number above 0")
    return value


def _whole(flag: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise LoadTestError(f"{flag}: {text!r}: must be a whole number of at least 1")
    return int(text)


def _allowance(text: str) -> Allowance:
    match = re.fullmatch(r"(?:(\d+)|(\d+(?:\.\d+)?)%)", text)
    if match is None:
        raise LoadTestError(f"--max-failures: {text!r}: must be a count, such as 5, or a share, such as 0.1%")
    count, share = match.groups()
    return Allowance(float(count or share), is_share=count is None)


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for each in text.split():
        # An input's name may have colons of its own.
        match = re.fullmatch(r"(.+):(\d+(?:,\d+)*)", each)
        if match is None:
            raise LoadTestError(f"--shape: {each!r}: must be an input's name and its dimensions, such as INPUT0:3,224")
        shapes[match[1]] = tuple(int(dimension) for dimension in match[2].split(","))
    return shapes
