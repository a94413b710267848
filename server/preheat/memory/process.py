"""What this process holds of the machine's memory, what is left, and giving back what is free.

Read from ``/proc`` and, in a container, from its control group; any thread may call it.
"""

import ctypes
import gc
import os
import re
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def resident_bytes(proc: Path = _PROC) -> int:
    """What the process holds in memory (proc(5), statm: the second field, in pages); 0 where that is not told."""
    try:
        return int((proc / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """What could still be had without swapping: of the machine, or of the process's control group if that has less.

    None where neither is told (proc(5), meminfo: MemAvailable; cgroup-v2: memory.max, memory.current and, since it can
    be dropped, inactive_file of memory.stat).
    """
    left = [each for each in (_machine_left(proc), _group_left(cgroup)) if each is not None]
    return min(left, default=None)


def release_free_memory() -> None:
    """Have what nobody refers to any more freed, and what the allocator keeps of it given back to the system.

    Takes tens of milliseconds, in which the interpreter's lock is held at times.
    """
    gc.collect()
    # glibc's; other C libraries give back by themselves.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _machine_left(proc: Path) -> int | None:
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _group_left(cgroup: Path) -> int | None:
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        droppable = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
        return None if most == "max" else int(most) - used + (int(droppable[1]) if droppable else 0)
    except (OSError, ValueError):
        return None
