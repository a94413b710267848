"""The one aggregate of what happened to requests. Every view (Prometheus today) reads it; nothing else counts."""

import bisect
import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from preheat.compilations import CompilationKind
from preheat.telemetry.events import (
    BatchExecuted,
    Compiled,
    Event,
    FailureReason,
    RequestFailed,
    StateChanged,
    VersionLoaded,
)

# Seconds. From a small model's whole request up to where any client has given up.
LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound; the last count is of values above every bound. Guarded by its owner's lock."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count ``value`` in the first bucket whose bound it does not exceed."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


def _latencies() -> Histogram:
    return Histogram(LATENCY_BOUNDS_S)


@dataclass(slots=True)
class BatchSizeStatistics:
    """What batches of one size cost. Times are sums in seconds, counted once for each batch."""

    executions: int = 0
    compute_input_s: float = 0.0
    compute_infer_s: float = 0.0
    compute_output_s: float = 0.0

    def count(self, event: BatchExecuted) -> None:
        """Add a batch of this size."""
        self.executions += 1
        self.compute_input_s += event.compute_input_s
        self.compute_infer_s += event.compute_infer_s
        self.compute_output_s += event.compute_output_s


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
    state: str = ""
    # By kind, before READY; and by instance and kind, after. Every series is there from READY on, at 0.
    compilations: dict[str, int] = field(default_factory=dict)
    cold_compilations: dict[tuple[int, str], int] = field(default_factory=dict)

    def count_batch(self, event: BatchExecuted) -> None:
        """Add an executed batch."""
        queue_s, request_s = event.queue_s, event.request_s
        requests = len(request_s)
        self.requests += requests
        self.inferences += event.rows
        self.executions += 1
        self.request_s += sum(request_s)
        self.queue_s += sum(queue_s)
        self.compute_input_s += requests * event.compute_input_s
        self.compute_infer_s += requests * event.compute_infer_s
        self.compute_output_s += requests * event.compute_output_s
        self.infer_histogram.observe(event.compute_infer_s)
        self.rows_histogram.observe(event.rows)
        for value in queue_s:
            self.queue_histogram.observe(value)
        for value in request_s:
            self.request_histogram.observe(value)
        size = self.batch_sizes.get(event.rows)
        if size is None:
            size = self.batch_sizes[event.rows] = BatchSizeStatistics()
        size.count(event)
        self.last_inference_ms = time.time_ns() // 1_000_000

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
        for kind in CompilationKind:
            self.compilations.setdefault(kind.value, 0)
            for instance in range(event.instances):
                self.cold_compilations.setdefault((instance, kind.value), 0)


class Statistics:
    """Statistics of every model version, fed by events.

    Any thread may call it; ``_versions`` is guarded by ``_lock``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], VersionStatistics] = {}

    def observe(self, event: Event) -> None:
        """Count an event: an :data:`~preheat.telemetry.events.Observer`."""
        with self._lock:
            version = self._versions.get((event.model, event.version))
            if version is None:
                version = self._versions[event.model, event.version] = VersionStatistics()
            match event:
                case BatchExecuted():
                    version.count_batch(event)
                case RequestFailed():
                    version.failures[event.reason] += 1
                    version.failed_s += event.request_s
                case StateChanged():
                    version.state = event.state
                case VersionLoaded():
                    version.begin_serving(event)
                case Compiled():
                    version.count_compilation(event)

    def of(self, model: str, version: int) -> VersionStatistics:
        """A copy of the statistics of one model version; all zero if nothing has happened to it."""
        with self._lock:
            return copy.deepcopy(self._versions.get((model, version), VersionStatistics()))

    def snapshot(self) -> dict[tuple[str, int], VersionStatistics]:
        """A copy of all statistics, by model and version, consistent for each version."""
        with self._lock:
            return {key: copy.deepcopy(version) for key, version in sorted(self._versions.items())}
