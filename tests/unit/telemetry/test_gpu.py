"""Metrics of GPUs, from a stand-in for the module pynvml."""

import logging
import urllib.request
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.builders import PATIENCE_S

from preheat.telemetry.gpu import GpuCollector
from preheat.telemetry.metrics import MetricsServer


class LibraryError(Exception):
    """What the library raises for everything."""


class Library:
    """NVML with GPUs called GPU-0, GPU-1, ... that do not support the questions in ``unsupported``."""

    NVMLError = LibraryError

    def __init__(self, gpus: int = 1, *, unsupported: Iterable[str] = (), driver: bool = True) -> None:
        self.gpus = gpus
        self.lost: set[int] = set()
        self.asked = 0
        self._unsupported = set(unsupported)
        self._driver = driver

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._driver:
            raise LibraryError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self.asked += 1
        if self.gpus < 0:
            raise LibraryError("Unknown Error")
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise LibraryError("GPU is lost")
        return index

    def __getattr__(self, name: str) -> Callable[[int], Any]:
        answers: dict[str, Callable[[int], Any]] = {
            "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}",
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=75 + gpu, memory=10),
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * 2**30, used=2**30, free=79 * 2**30),
            "nvmlDeviceGetPowerUsage": lambda _: 123_456,
            "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: 5_000_500,
        }
        if name in self._unsupported:
            return self._refuse
        return answers[name]

    @staticmethod
    def _refuse(_: int) -> None:
        raise LibraryError("Not Supported")


def values(collector: GpuCollector, uuid: str = "GPU-0") -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.labels == {"gpu_uuid": uuid}
    }


def test_a_gpu_is_told_in_the_units_of_triton() -> None:
    assert values(GpuCollector(Library)) == {
        "nv_gpu_utilization": 0.75,
        "nv_gpu_memory_total_bytes": 80 * 2**30,
        "nv_gpu_memory_used_bytes": 2**30,
        "nv_gpu_power_usage": 123.456,
        "nv_gpu_power_limit": 700.0,
        "nv_energy_consumption": 5000.5,
    }


def test_each_gpu_has_its_own_samples() -> None:
    collector = GpuCollector(lambda: Library(2))
    assert values(collector, "GPU-1")["nv_gpu_utilization"] == 0.76
    assert len(values(collector, "GPU-0")) == len(values(collector, "GPU-1")) == 6


def test_what_a_gpu_does_not_support_is_absent_and_the_rest_there() -> None:
    unsupported = ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTotalEnergyConsumption"]
    collector = GpuCollector(lambda: Library(unsupported=unsupported))
    families = {family.name for family in collector.collect()}
    assert families == {
        "nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes", "nv_gpu_power_usage", "nv_gpu_power_limit",
    }  # fmt: skip


def test_a_lost_gpu_is_left_out_and_comes_back() -> None:
    library = Library(2)
    library.lost.add(0)
    collector = GpuCollector(lambda: library, interval_s=0)
    assert (len(values(collector, "GPU-0")), len(values(collector, "GPU-1"))) == (0, 6)
    library.lost.clear()
    assert len(values(collector, "GPU-0")) == 6


def test_the_driver_is_asked_once_an_interval_however_often_one_scrapes() -> None:
    library, now_s = Library(), [50.0]
    collector = GpuCollector(lambda: library, interval_s=2, clock=lambda: now_s[0])
    for moment_s in (50.0, 51.0, 51.9, 52.0, 53.0):
        now_s[0] = moment_s
        assert len(values(collector)) == 6
    assert library.asked == 2


@pytest.mark.parametrize("gpus", [0, -1])
def test_without_a_gpu_there_are_no_families(gpus: int) -> None:
    assert list(GpuCollector(lambda: Library(gpus)).collect()) == []


def test_without_the_package_there_are_no_families_and_it_is_looked_for_once() -> None:
    looked = []

    def absent() -> Any:
        looked.append(1)
        raise ModuleNotFoundError("No module named 'pynvml'")

    collector = GpuCollector(absent, interval_s=0)
    assert looked == [], "constructing it must cost nothing"
    assert list(collector.collect()) == list(collector.collect()) == []
    assert len(looked) == 1


def test_without_the_driver_there_are_no_families_and_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    collector = GpuCollector(lambda: Library(driver=False), interval_s=0)
    with caplog.at_level(logging.DEBUG):
        assert list(collector.collect()) == list(collector.collect()) == []
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "no metrics of GPUs: Driver Not Loaded")
    ]


def test_a_scrape_has_the_names_of_triton_without_endings_of_the_client_library() -> None:
    server = MetricsServer(GpuCollector(Library), GpuCollector(lambda: Library(0)), host="127.0.0.1", port=0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
    finally:
        server.close()
    assert 'nv_energy_consumption{gpu_uuid="GPU-0"} 5000.5' in lines
    assert "# TYPE nv_energy_consumption counter" in lines
    assert 'nv_gpu_memory_total_bytes{gpu_uuid="GPU-0"} 8.589934592e+10' in lines
