"""The statistics as Prometheus metrics, on a port of their own.

``nv_*`` families carry Triton's names, labels and units, so that its dashboards work; ``preheat_*`` are ours.
Everything is formed when scraped, so a request pays for none of it.
"""

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from preheat.telemetry.statistics import Histogram, Statistics, VersionStatistics

log = logging.getLogger(__name__)

_LABELS = ["model", "version"]
_STATES = ("LOADING", "READY", "DRAINING", "UNLOADED", "FAILED")

# Triton's cumulative counters: name, help, value.
_COUNTERS: tuple[tuple[str, str, Callable[[VersionStatistics], float]], ...] = (
    ("nv_inference_request_success", "Number of successful inference requests", lambda v: v.requests),
    ("nv_inference_count", "Number of inferences performed: the rows of successful requests", lambda v: v.inferences),
    ("nv_inference_exec_count", "Number of batches executed", lambda v: v.executions),
    ("nv_inference_request_duration_us", "Cumulative microseconds from arrival to answer", lambda v: v.request_s * 1e6),
    ("nv_inference_queue_duration_us", "Cumulative microseconds requests waited", lambda v: v.queue_s * 1e6),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative microseconds spent joining inputs",
        lambda v: v.compute_input_s * 1e6,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative microseconds spent in the model",
        lambda v: v.compute_infer_s * 1e6,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative microseconds spent cutting and encoding outputs",
        lambda v: v.compute_output_s * 1e6,
    ),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[VersionStatistics], Histogram]], ...] = (
    ("preheat_request_duration_seconds", "From arrival to answer, per request", lambda v: v.request_histogram),
    ("preheat_queue_duration_seconds", "Waiting for a worker, per request", lambda v: v.queue_histogram),
    ("preheat_compute_duration_seconds", "In the model, per batch", lambda v: v.infer_histogram),
    ("preheat_batch_rows", "Rows of each executed batch, without padding", lambda v: v.rows_histogram),
)


class StatisticsCollector(Collector):
    """Forms metric families from ``statistics`` on each scrape.

    ``waiting`` gives the queue length by model and version.
    """

    def __init__(self, statistics: Statistics, waiting: Callable[[], Mapping[tuple[str, int], int]]) -> None:
        self._statistics = statistics
        self._waiting = waiting

    def collect(self) -> Iterable[Metric]:
        """Called by the HTTP server's thread."""
        # Version 0 stands for a model that has no version that could be tried.
        versions = {(model, str(version)): v for (model, version), v in self._statistics.snapshot().items() if version}
        for name, text, value in _COUNTERS:
            yield _untotalled(name, text, ((labels, value(v)) for labels, v in versions.items()))
        yield self._failures(versions)
        for name, text, histogram in _HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=_LABELS)
            for labels, v in versions.items():
                family.add_metric(labels, _cumulative(histogram(v)), histogram(v).total)
            yield family
        yield self._pending()
        yield from self._loading(versions)
        yield from self._compilations(versions)

    def describe(self) -> Iterable[Metric]:
        """Empty: families appear with the first model, and registering must not collect."""
        return []

    def _failures(self, versions: Mapping[tuple[str, str], VersionStatistics]) -> Metric:
        samples = (
            ((*labels, reason.value), float(count))
            for labels, v in versions.items()
            for reason, count in v.failures.items()
        )
        text = "Number of failed inference requests, by reason"
        return _untotalled("nv_inference_request_failure", text, samples, [*_LABELS, "reason"])

    def _pending(self) -> Metric:
        family = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests waiting for a worker", labels=_LABELS
        )
        for (model, version), count in self._waiting().items():
            family.add_metric((model, str(version)), count)
        return family

    def _compilations(self, versions: Mapping[tuple[str, str], VersionStatistics]) -> Iterator[Metric]:
        before = CounterMetricFamily(
            "preheat_compilations",
            "Graphs, kernels, engines and sessions built before READY, by kind",
            labels=[*_LABELS, "kind"],
        )
        after = CounterMetricFamily(
            "preheat_cold_compiles",
            "The same after the warm-up, where a request waited for it, and requests that ran uncompiled (kind eager)",
            labels=[*_LABELS, "instance", "kind"],
        )
        for labels, v in versions.items():
            for kind, count in v.compilations.items():
                before.add_metric([*labels, kind], count)
            for (instance, kind), count in v.cold_compilations.items():
                after.add_metric([*labels, str(instance), kind], count)
        yield from (before, after)

    def _loading(self, versions: Mapping[tuple[str, str], VersionStatistics]) -> Iterator[Metric]:
        total = GaugeMetricFamily("nv_model_load_duration_secs", "Seconds from LOADING to READY", labels=_LABELS)
        warmup = GaugeMetricFamily("preheat_model_warmup_seconds", "Seconds of warm-up before READY", labels=_LABELS)
        memory = GaugeMetricFamily(
            "preheat_model_memory_bytes", "By how much the process grew while the version was loaded", labels=_LABELS
        )
        freed = GaugeMetricFamily(
            "preheat_model_freed_bytes", "By how much it shrank when the version was last closed", labels=_LABELS
        )
        state = GaugeMetricFamily("preheat_model_state", "1 for the state it is in", labels=[*_LABELS, "state"])
        for labels, v in versions.items():
            if v.load_s is not None and v.warmup_s is not None:
                total.add_metric(labels, v.load_s + v.warmup_s)
                warmup.add_metric(labels, v.warmup_s)
            if v.memory_bytes is not None:
                memory.add_metric(labels, v.memory_bytes)
            if v.freed_bytes is not None:
                freed.add_metric(labels, v.freed_bytes)
            for name in _STATES:
                state.add_metric((*labels, name), float(v.state == name))
        yield from (total, warmup, memory, freed, state)


class MetricsServer:
    """Serves ``/metrics`` on threads of its own until :meth:`close`."""

    def __init__(self, *collectors: Collector, host: str, port: int) -> None:
        """Bind and serve at once; raises OSError if the port cannot be had. Port 0 takes a free one."""
        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        server_class = _Ipv6Server if ":" in host else ThreadingHTTPServer
        try:
            self._server = server_class((host, port), _handler(registry))
        except socket.gaierror as exc:
            raise OSError(f"cannot listen on --host {host}: {exc.strerror}") from exc
        except OSError as exc:
            raise OSError(
                f"cannot listen on {host}:{port} for metrics: {exc.strerror}; choose another with --metrics-port"
            ) from exc
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving. Blocks until the server's thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Ipv6Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _handler(registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    """Answers GET /metrics with the text format, as Triton does, whatever other formats the scraper would take."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, explain="metrics are at /metrics")
                return
            body = _drop_total(generate_latest(registry))
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            log.debug(format, *args)

    return Handler


def _drop_total(text: bytes) -> bytes:
    """The client library ends the names of counters with ``_total`` in their headers; Triton's have no such ending."""
    return re.sub(rb"^(# (?:HELP|TYPE) nv_\w+)_total ", rb"\1 ", text, flags=re.MULTILINE)


def _untotalled(
    name: str, text: str, samples: Iterable[tuple[tuple[str, ...], float]], labels: list[str] | None = None
) -> Metric:
    """A counter whose samples have exactly ``name``, without the ``_total`` that the client library's own would get."""
    names = labels or _LABELS
    family = Metric(name, text, "counter")
    for values, value in samples:
        family.add_sample(name, dict(zip(names, values, strict=True)), value)
    return family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """The buckets as Prometheus wants them: each counts all values up to its bound."""
    buckets: list[tuple[str, float]] = []
    count = 0
    for bound, in_bucket in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += in_bucket
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), count))
    return buckets
