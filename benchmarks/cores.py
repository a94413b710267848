"""How many cores a server, its clients and everybody else use while something is measured. Linux only."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Of the numbers in /proc/stat: user, nice, system, irq and softirq.
_BUSY = (0, 1, 2, 5, 6)


@dataclass(frozen=True, slots=True)
class CoreUse:
    """Cores in use, on average, of which ``client`` are this process's and those of the processes it waited for."""

    server: float
    client: float
    other: float


@dataclass(frozen=True, slots=True)
class _Process:
    """One line of the process table."""

    pid: int
    parent: int
    busy_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds of a core that were spent until ``at_s``."""

    at_s: float
    server_s: float
    client_s: float
    all_s: float


class CoreMeter:
    """Measures from when it is made to :meth:`read`. ``server`` is the process that serves; None: none does."""

    def __init__(self, server: int | None) -> None:
        self._server = server
        self._start = self._spent()

    def read(self) -> CoreUse:
        """The cores used since."""
        start, end = self._start, self._spent()
        seconds = end.at_s - start.at_s
        server, client = end.server_s - start.server_s, end.client_s - start.client_s
        # The kernel counts in hundredths of a second, so that a share can be a little less than nothing.
        other = max(0.0, end.all_s - start.all_s - server - client)
        return CoreUse(server / seconds, client / seconds, other / seconds)

    def _spent(self) -> _Spent:
        server_s = 0.0 if self._server is None else sum(each.busy_s for each in _tree(self._server))
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return _Spent(time.monotonic(), server_s, sum(each.ru_utime + each.ru_stime for each in used), _all_busy_s())


def resident_mib(server: int) -> float:
    """The resident memory of a process and its descendants; what they share counts for each."""
    return sum(each.resident_bytes for each in _tree(server)) / 2**20


def _tree(root: int) -> list[_Process]:
    processes = _processes()
    tree = [each for each in processes if each.pid == root]
    for each in tree:
        # Grows while it is walked, and so ends with the last generation.
        tree += [child for child in processes if child.parent == each.pid]
    return tree


def _processes() -> list[_Process]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue  # it has ended
        # The name before the last bracket may hold anything.
        fields = text.rpartition(")")[2].split()
        busy_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        found.append(_Process(int(path.parent.name), int(fields[1]), busy_s, int(fields[21]) * _PAGE_BYTES))
    return found


def _all_busy_s() -> float:
    with Path("/proc/stat").open() as file:
        numbers = file.readline().split()[1:]
    return sum(int(numbers[index]) for index in _BUSY) / _TICKS_PER_S
