"""OpenVINO itself, imported without what it would tell its maker.

``import openvino`` sends an event to a service of statistics on the internet, and leaves a number for this user in the
home folder, without asking; only a file that its tool writes there keeps it from that, or an environment that looks
like a CI job. It does so by a package of its own, and does without where there is none: while it is imported here,
there is none. Nothing else of OpenVINO that the server could get to reports anything.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Have imports of the package that reports fail, unless it is imported already."""
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


with _without_telemetry():
    import openvino as ov  # type: ignore[import-untyped]

__all__ = ["CPU", "describe_version", "get_core", "ov", "reason_of"]

CPU = "CPU"


@cache
def get_core() -> "ov.Core":
    """The one core of this process, which loads plugins when they are first asked for. Any thread."""
    return ov.Core()


def describe_version() -> str:
    """The version as released: ``2026.4.1``."""
    version: str = ov.__version__
    return version.partition("-")[0]


_PLACES = re.compile(r"Caught exception:|Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:")
_LONGEST = 400


def reason_of(error: Exception) -> str:
    """What OpenVINO says, on one line, without where in its sources it says so."""
    told = str(error)
    words = " ".join(_PLACES.sub(" ", told).split()) or " ".join(told.split())
    return (words or type(error).__name__)[:_LONGEST]
