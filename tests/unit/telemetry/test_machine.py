"""Use of the machine, read from a folder in the form of /proc."""

import os
from pathlib import Path

import pytest

from preheat.telemetry.machine import MachineCollector

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n"


class Machine:
    """A folder in the form of /proc, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 100.0
        self.proc = folder
        self.spend(busy=100, idle=300)
        (folder / "meminfo").write_text(MEMINFO, encoding="ascii")

    def spend(self, *, busy: int, idle: int) -> None:
        """Let the counts of all processors stand at these."""
        # user, nice, system, idle, iowait, irq, softirq, steal, and two that are counted in user and nice already.
        ticks = [busy - 5, 1, 1, idle - 7, 7, 1, 1, 1, 999, 999]
        (self.proc / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\nbtime 5\n", encoding="ascii")

    def collector(self) -> MachineCollector:
        return MachineCollector(proc=self.proc, clock=lambda: self.now_s)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def values(collector: MachineCollector) -> dict[str, float]:
    return {sample.name: sample.value for family in collector.collect() for sample in family.samples}


def test_utilization_is_the_busy_share_since_the_scrape_before(machine: Machine) -> None:
    collector = machine.collector()
    machine.spend(busy=130, idle=370)
    assert values(collector)["nv_cpu_utilization"] == pytest.approx(0.3)
    machine.now_s += 15
    machine.spend(busy=220, idle=380)
    assert values(collector)["nv_cpu_utilization"] == pytest.approx(0.9)


def test_scrapes_that_come_fast_get_the_same_share(machine: Machine) -> None:
    collector = machine.collector()
    machine.spend(busy=130, idle=370)
    first = values(collector)["nv_cpu_utilization"]
    machine.now_s += 0.5
    machine.spend(busy=131, idle=370)
    assert values(collector)["nv_cpu_utilization"] == first


def test_counts_that_step_back_give_no_share_outside_0_to_1(machine: Machine) -> None:
    collector = machine.collector()
    machine.spend(busy=150, idle=290)
    assert values(collector)["nv_cpu_utilization"] == 1


def test_without_a_tick_between_there_is_no_share_to_tell(machine: Machine) -> None:
    assert "nv_cpu_utilization" not in values(machine.collector())


def test_memory_that_programs_could_have_is_not_in_use(machine: Machine) -> None:
    found = values(machine.collector())
    assert found["nv_cpu_memory_total_bytes"] == 1000 * 1024
    assert found["nv_cpu_memory_used_bytes"] == 600 * 1024


def test_a_machine_that_does_not_say_what_is_available_has_no_memory_families(machine: Machine) -> None:
    (machine.proc / "meminfo").write_text("MemTotal:  1000 kB\n", encoding="ascii")
    assert "nv_cpu_memory_total_bytes" not in values(machine.collector())


def test_a_machine_without_proc_has_no_families(tmp_path: Path) -> None:
    assert list(MachineCollector(proc=tmp_path / "absent").collect()) == []


def test_this_process_has_memory_processor_time_and_files(tmp_path: Path) -> None:
    found = values(MachineCollector())
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_cpu_seconds_total"] > 0
    with (tmp_path / "held").open("w", encoding="ascii"):
        assert values(MachineCollector())["process_open_fds"] > 2
    assert 0 < found["nv_cpu_memory_used_bytes"] < found["nv_cpu_memory_total_bytes"]
    assert found["nv_cpu_memory_total_bytes"] == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.01
    )
