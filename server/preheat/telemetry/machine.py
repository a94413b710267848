"""What this process, and the machine under it, use of processor and memory.

``process_*`` families are the client library's. ``nv_cpu_*`` carry Triton's names and count the whole machine, also
where the process may use only a part of it. Read from ``/proc``: where there is none, there are no families.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

# A share of less time than this is noise, so scrapes that come faster get the last one again.
_SHORTEST_SHARE_S = 1.0


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Ticks since the machine started, over all its cores."""

    busy: int
    total: int

    def share_since(self, earlier: "ProcessorTimes") -> float | None:
        """The busy share of the time from ``earlier`` to now, from 0 to 1; None if no tick has passed."""
        total = self.total - earlier.total
        # The kernel's counts of waiting may step back a little.
        return min(1.0, max(0.0, (self.busy - earlier.busy) / total)) if total > 0 else None


class MachineCollector(Collector):
    """Reads ``/proc`` on each scrape. Scrapes may run at once: ``_times``, ``_read_s`` and ``_share`` are guarded."""

    def __init__(self, *, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._clock = clock
        self._process = ProcessCollector(proc=str(proc), registry=None)
        self._lock = threading.Lock()
        # The share of the first scrape is that of the time since now.
        self._times = _processor_times(proc)
        self._read_s = clock()
        self._share: float | None = None

    def collect(self) -> Iterable[Metric]:
        """Called by a thread of the HTTP server."""
        yield from self._process.collect()
        share = self._utilization()
        if share is not None:
            yield GaugeMetricFamily("nv_cpu_utilization", "Busy share of all processors, from 0 to 1", share)
        yield from _memory(self._proc)

    def describe(self) -> Iterable[Metric]:
        """Empty: registering must not collect."""
        return []

    def _utilization(self) -> float | None:
        """The busy share since the last time it was formed; None before there is one."""
        with self._lock:
            now_s = self._clock()
            if self._share is not None and now_s - self._read_s < _SHORTEST_SHARE_S:
                return self._share
            times = _processor_times(self._proc)
            if times is None or self._times is None:
                return None
            share = times.share_since(self._times)
            if share is not None:
                self._share, self._times, self._read_s = share, times, now_s
            return self._share


def _processor_times(proc: Path) -> ProcessorTimes | None:
    """The first line of ``/proc/stat``; None where there is none."""
    try:
        line = (proc / "stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user and nice already.
    ticks = [int(field) for field in line.split()[1:9]]
    total = sum(ticks)
    return ProcessorTimes(busy=total - sum(ticks[3:5]), total=total)


def _memory(proc: Path) -> Iterator[Metric]:
    """Memory of the machine. Used is what is not available to programs: caches that can be dropped are available."""
    try:
        text = (proc / "meminfo").read_text(encoding="ascii")
    except OSError:
        return
    kibibytes = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    if not {"MemTotal", "MemAvailable"} <= kibibytes.keys():
        return
    total, available = kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024
    yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "Memory of the machine", total)
    yield GaugeMetricFamily("nv_cpu_memory_used_bytes", "Memory of the machine that is in use", total - available)
