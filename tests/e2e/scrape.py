"""Reading the server's metrics.

The names are taken as they stand: the Prometheus client library's own parser would add ``_total`` to Triton's.
"""

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from tests.e2e.server_process import LIMIT_S, ServerProcess

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TYPE = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the metrics."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """What the metrics said at one time."""

    def __init__(self, text: str) -> None:
        self.types = dict(_TYPE.findall(text))
        self.samples = [
            Sample(name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _SAMPLE.findall(text)
        ]

    def select(self, name: str, **labels: str) -> list[Sample]:
        """The samples called ``name`` that have ``labels``."""
        return [sample for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples called ``name`` that have ``labels``. Fails if there is none."""
        values = [sample.value for sample in self.select(name, **labels)]
        assert values, f"no sample {name} with {labels}"
        return sum(values)

    def state(self, model: str, version: str = "1") -> list[str]:
        """The states whose gauge is 1: there should be one."""
        samples = self.select("preheat_model_state", model=model, version=version)
        return [sample.labels["state"] for sample in samples if sample.value == 1]


def scrape(server: ServerProcess) -> Scrape:
    """What the metrics say now."""
    with urllib.request.urlopen(server.metrics_url, timeout=LIMIT_S) as response:  # noqa: S310 - the server's own
        return Scrape(response.read().decode())


def scrape_until(server: ServerProcess, holds: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape for which ``holds``. For what comes soon, and for what the server counts after it answers."""
    limit_s = time.monotonic() + LIMIT_S
    while not holds(found := scrape(server)):
        assert time.monotonic() < limit_s, f"the metrics stay at {found.samples}"
        time.sleep(0.01)
    return found
