"""What the machine's NVIDIA GPUs are doing, under Triton's names.

Asked of the driver through NVML (the package ``nvidia-ml-py``), on the metrics server's threads and at most every few
seconds, so that no request waits for it. Without the package, the driver or a GPU there are no families at all: zeros
would say that there is an idle GPU.
"""

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

# As often as Triton asks, by default.
_INTERVAL_S = 2.0
_LABELS = ["gpu_uuid"]

_GAUGES = {
    "nv_gpu_utilization": "Share of time in which the GPU ran anything, from 0 to 1",
    "nv_gpu_memory_total_bytes": "Memory of the GPU",
    "nv_gpu_memory_used_bytes": "Memory of the GPU that is in use, by any process",
    "nv_gpu_power_usage": "Watts that the GPU draws",
    "nv_gpu_power_limit": "Watts that the GPU may draw",
}
_ENERGY = "nv_energy_consumption"


# The module ``pynvml``, which has no types. Power is in milliwatts there, energy in millijoules.
Nvml: TypeAlias = Any


def import_nvml() -> Nvml:
    """The module ``pynvml``. Raises ImportError without the package ``nvidia-ml-py``."""
    return importlib.import_module("pynvml")


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What one GPU said, by family; a family that it does not support is left out."""

    uuid: str
    values: Mapping[str, float]


class GpuCollector(Collector):
    """Asks NVML on a scrape, unless it was asked within the last ``interval_s`` seconds.

    ``load`` gives NVML; it is called once, on the first scrape. Scrapes may run at once: all state is guarded by
    ``_lock``.
    """

    def __init__(
        self,
        load: Callable[[], Nvml] = import_nvml,
        *,
        interval_s: float = _INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._opened = False
        self._nvml: Nvml | None = None
        self._read_s = float("-inf")
        self._readings: Sequence[GpuReading] = ()

    def collect(self) -> Iterable[Metric]:
        """Called by a thread of the HTTP server."""
        readings = self._recent_readings()
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for reading in readings:
                if name in reading.values:
                    gauge.add_metric([reading.uuid], reading.values[name])
            if gauge.samples:
                yield gauge
        # Not the client library's counter, whose samples would end in _total.
        energy = Metric(_ENERGY, "Joules that the GPU has used since its driver started", "counter")
        for reading in readings:
            if _ENERGY in reading.values:
                energy.add_sample(_ENERGY, {"gpu_uuid": reading.uuid}, reading.values[_ENERGY])
        if energy.samples:
            yield energy

    def describe(self) -> Iterable[Metric]:
        """Empty: registering must not collect."""
        return []

    def _recent_readings(self) -> Sequence[GpuReading]:
        with self._lock:
            if not self._opened:
                self._nvml = _open(self._load)
                self._opened = True
            now_s = self._clock()
            if self._nvml is not None and now_s - self._read_s >= self._interval_s:
                self._readings, self._read_s = _read(self._nvml), now_s
            return self._readings


def _open(load: Callable[[], Nvml]) -> Nvml | None:
    """NVML ready for use; None, with a line in the log, where it cannot be had."""
    try:
        nvml = load()
    except ImportError as exc:
        log.debug("no metrics of GPUs: %s", exc)
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        log.info("no metrics of GPUs: %s", exc)
        return None
    return nvml


def _read(nvml: Nvml) -> list[GpuReading]:
    """Ask every GPU. Those that do not answer, because they fell off the bus for one, are left out."""
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as exc:
        log.debug("no metrics of GPUs: %s", exc)
        return []
    readings = []
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError as exc:
            log.debug("no metrics of GPU %d: %s", index, exc)
            continue
        readings.append(GpuReading(uuid, _values(nvml, handle)))
    return readings


def _values(nvml: Nvml, handle: Any) -> dict[str, float]:
    values: dict[str, float] = {}

    def add(ask: Callable[[Any], Any], **families: Callable[[Any], float]) -> None:
        """Ask once and form each family of the answer, unless this GPU does not support the question."""
        try:
            answer = ask(handle)
        except nvml.NVMLError as exc:
            log.debug("no %s: %s", ", ".join(families), exc)
            return
        values.update({name: form(answer) for name, form in families.items()})

    add(nvml.nvmlDeviceGetUtilizationRates, nv_gpu_utilization=lambda rates: rates.gpu / 100)
    add(
        nvml.nvmlDeviceGetMemoryInfo,
        nv_gpu_memory_total_bytes=lambda memory: memory.total,
        nv_gpu_memory_used_bytes=lambda memory: memory.used,
    )
    add(nvml.nvmlDeviceGetPowerUsage, nv_gpu_power_usage=_thousandth)
    add(nvml.nvmlDeviceGetEnforcedPowerLimit, nv_gpu_power_limit=_thousandth)
    add(nvml.nvmlDeviceGetTotalEnergyConsumption, nv_energy_consumption=_thousandth)
    return values


def _thousandth(value: int) -> float:
    return value / 1000
