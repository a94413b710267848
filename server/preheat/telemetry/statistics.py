"""The one aggregate of what happened to requests. Every view (Prometheus today) reads it; nothing else counts."""

import copy
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from preheat.compilations import CompilationKind
from preheat.telemetry.events import (
    BatchExecuted,
    Compiled,
    Event,
    FailureReason,
    InstancesChanged,
    ModelSettled,
    RequestFailed,
    StateChanged,
    VersionFreed,
    VersionLoaded,
)

# Seconds. From a small model's whole request up to where any client has given up.
LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
# How many batches wait to be counted at once: one by one, counting is a tenth of what a small request takes.
_MOST_UNCOUNTED = 256

Numbers: TypeAlias = npt.NDArray[np.floating[Any] | np.integer[Any]]

ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound; the last count is of values above every bound. Guarded by its owner's lock."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, values: Numbers) -> None:
        """Count each of ``values`` in the first bucket whose bound it does not exceed."""
        found = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts))
        self.counts = [count + new for count, new in zip(self.counts, found.tolist(), strict=True)]
        self.total += float(values.sum())


def _latencies() -> Histogram:
    return Histogram(LATENCY_BOUNDS_S)


@dataclass(slots=True)
class BatchSizeStatistics:
    """What batches of one size cost. Times are sums in seconds, counted once for each batch."""

    executions: int = 0
    compute_input_s: float = 0.0
    compute_infer_s: float = 0.0
    compute_output_s: float = 0.0


@dataclass(slots=True)
class VersionStatistics:
    """What happened to one model version since the server started. Times are sums in seconds.

    ``requests`` is successful requests, ``inferences`` their rows, ``executions`` batches. Per-batch times are
    counted once for each request of the batch, as Triton's ModelStatistics does, so that a mean per request can be
    formed.
    """

    requests: int = 0
    inferences: int = 0
    executions: int = 0
    request_s: float = 0.0
    queue_s: float = 0.0
    compute_input_s: float = 0.0
    compute_infer_s: float = 0.0
    compute_output_s: float = 0.0
    failures: dict[FailureReason, int] = field(default_factory=lambda: dict.fromkeys(FailureReason, 0))
    failed_s: float = 0.0
    batch_sizes: dict[int, BatchSizeStatistics] = field(default_factory=dict)
    request_histogram: Histogram = field(default_factory=_latencies)
    queue_histogram: Histogram = field(default_factory=_latencies)
    infer_histogram: Histogram = field(default_factory=_latencies)
    rows_histogram: Histogram = field(default_factory=lambda: Histogram(ROW_BOUNDS))
    last_inference_ms: int = 0
    load_s: float | None = None
    warmup_s: float | None = None
    memory_bytes: int | None = None
    freed_bytes: int | None = None
    state: str = ""
    # By kind, before READY; and by instance and kind, after. Every series is there from READY on, at 0.
    compilations: dict[str, int] = field(default_factory=dict)
    cold_compilations: dict[tuple[int, str], int] = field(default_factory=dict)

    def count_batches(self, events: Sequence[BatchExecuted]) -> None:
        """Add executed batches, in the order in which they ended; at least one."""
        rows = np.array([event.rows for event in events])
        times_s = np.array([event[-4:] for event in events])
        started_s, ended_s = times_s[:, 0], times_s[:, -1]
        computed_s = np.diff(times_s)
        requests = [len(event.arrived_s) for event in events]
        arrived_s = np.concatenate([event.arrived_s for event in events])
        queue_s, request_s = np.repeat(started_s, requests) - arrived_s, np.repeat(ended_s, requests) - arrived_s
        self.requests += len(arrived_s)
        self.inferences += int(rows.sum())
        self.executions += len(events)
        self.request_s += float(request_s.sum())
        self.queue_s += float(queue_s.sum())
        for_requests_s = (np.array(requests) @ computed_s).tolist()
        self.compute_input_s += for_requests_s[0]
        self.compute_infer_s += for_requests_s[1]
        self.compute_output_s += for_requests_s[2]
        self.infer_histogram.observe(computed_s[:, 1])
        self.rows_histogram.observe(rows)
        self.queue_histogram.observe(queue_s)
        self.request_histogram.observe(request_s)
        self._count_sizes(rows, computed_s)
        # The two clocks' distance, as it is now: the wall's may be set.
        self.last_inference_ms = int((time.time() - time.monotonic() + float(ended_s[-1])) * 1000)

    def _count_sizes(self, rows: Numbers, computed_s: Numbers) -> None:
        for size in set(rows.tolist()):
            those_s = computed_s[rows == size]
            statistics = self.batch_sizes.setdefault(size, BatchSizeStatistics())
            statistics.executions += len(those_s)
            sums_s = those_s.sum(axis=0).tolist()
            statistics.compute_input_s += sums_s[0]
            statistics.compute_infer_s += sums_s[1]
            statistics.compute_output_s += sums_s[2]

    def count_compilation(self, event: Compiled) -> None:
        """Add something that was compiled."""
        if event.ready:
            key = (event.instance, event.kind)
            self.cold_compilations[key] = self.cold_compilations.get(key, 0) + 1
        else:
            self.compilations[event.kind] = self.compilations.get(event.kind, 0) + 1

    def begin_serving(self, event: VersionLoaded) -> None:
        """Note what loading took, and begin the series that have to be seen not to move."""
        self.load_s, self.warmup_s = event.load_s, event.warmup_s
        self.memory_bytes = event.grown_bytes
        for kind in CompilationKind:
            self.compilations.setdefault(kind.value, 0)
        self.begin_instances(event.instances)

    def begin_instances(self, instances: int) -> None:
        """Begin the series of as many instances."""
        for kind in CompilationKind:
            for instance in range(instances):
                self.cold_compilations.setdefault((instance, kind.value), 0)


class Statistics:
    """Statistics of every model version, fed by events.

    Any thread may call it; ``_versions`` is guarded by ``_lock``. ``_uncounted`` are batches that are not in it yet,
    which whoever looks counts first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], VersionStatistics] = {}
        self._uncounted: deque[BatchExecuted] = deque()
        # When the newest batch had ended, by time.monotonic().
        self._last_batch_s = -math.inf

    def observe(self, event: Event) -> None:
        """Count an event: an :data:`~preheat.telemetry.events.Observer`."""
        if type(event) is BatchExecuted:
            self._uncounted.append(event)
            self._last_batch_s = event.ended_s
            if len(self._uncounted) >= _MOST_UNCOUNTED:
                with self._lock:
                    self._count_batches()
            return
        if isinstance(event, ModelSettled):
            return
        with self._lock:
            version = self._version(event.model, event.version)
            match event:
                case RequestFailed():
                    version.failures[event.reason] += 1
                    version.failed_s += event.request_s
                case StateChanged():
                    version.state = event.state
                case VersionLoaded():
                    version.begin_serving(event)
                case VersionFreed():
                    version.freed_bytes = event.freed_bytes
                case InstancesChanged():
                    version.begin_instances(event.instances)
                case Compiled():
                    version.count_compilation(event)

    def of(self, model: str, version: int) -> VersionStatistics:
        """A copy of the statistics of one model version; all zero if nothing has happened to it."""
        with self._lock:
            self._count_batches()
            return copy.deepcopy(self._versions.get((model, version), VersionStatistics()))

    def idle_s(self) -> float:
        """For how many seconds no batch has ended; infinite if none ever did."""
        return time.monotonic() - self._last_batch_s

    def snapshot(self) -> dict[tuple[str, int], VersionStatistics]:
        """A copy of all statistics, by model and version, consistent for each version."""
        with self._lock:
            self._count_batches()
            return {key: copy.deepcopy(version) for key, version in sorted(self._versions.items())}

    def _count_batches(self) -> None:
        """Count what is uncounted. Call with ``_lock`` held."""
        events: dict[tuple[str, int], list[BatchExecuted]] = {}
        # As many as there are now: while they are taken, others come.
        for _ in range(len(self._uncounted)):
            event = self._uncounted.popleft()
            events.setdefault((event.model, event.version), []).append(event)
        for (model, version), batches in events.items():
            self._version(model, version).count_batches(batches)

    def _version(self, model: str, version: int) -> VersionStatistics:
        """The statistics of a version, made if there are none. Call with ``_lock`` held."""
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionStatistics()
        return found
