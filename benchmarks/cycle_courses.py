"""What a server held after each unload, whether that grows, and by how much it may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.plots import Courses
from benchmarks.report import Row, Section

# KiB by which a cycle may make the server grow, in the second half.
BOUNDS_KIB = {
    "double": 8.0,
    "python": 16.0,
    "eager": 16.0,
    "torchscript": 64.0,
    "onnxruntime": 32.0,
    "openvino": 64.0,
    "torch_compile": 64.0,
    "torchao": 64.0,
    "aot_inductor": 32.0,
}
# The same for each artifact that is compiled anew: its code stays mapped, since Python cannot unload a module.
ARTIFACT_BOUNDS_KIB = {"torch_compile": 1024.0}


@dataclass(slots=True)
class Course:
    """What a server held after each unload: memory in KiB, open files, threads, and mappings.

    ``compiled`` are mappings of files that are gone: compilers load code so and leave none behind.
    """

    resident_kib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    mappings: list[int] = field(default_factory=list)
    compiled: list[int] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)

    def note(self, pid: int, load_s: float) -> None:
        """Look at the process now."""
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        self.resident_kib.append(float(status["VmRSS"].split()[0]))
        self.threads.append(int(status["Threads"]))
        self.files.append(len(list((process / "fd").iterdir())))
        mappings = (process / "maps").read_text().splitlines()
        self.mappings.append(len(mappings))
        self.compiled.append(deleted(mappings))
        self.load_s.append(load_s)


def deleted(mappings: Sequence[str]) -> int:
    """How many of the lines of /proc/PID/maps are of code whose file is gone; memory shared by name is gone so too."""
    return sum(line.endswith(".so (deleted)") for line in mappings)


def slope(values: Sequence[float]) -> float:
    """By how much values grow from one to the next, by least squares; 0 of a single one."""
    if len(values) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), np.asarray(values, np.float64), 1)[0])


def same_section(courses: Mapping[str, Course], version: str) -> Section:
    """Of one artifact, again and again."""
    rows, failures = [], []
    for backend, course in courses.items():
        half = course.resident_kib[len(course.resident_kib) // 2 :]
        row = _row(backend, course, slope(half), BOUNDS_KIB[backend])
        rows.append(row)
        if row["held"] == "no":
            failures.append(f"{backend} grows by {slope(half):.1f} KiB a cycle, and may by {BOUNDS_KIB[backend]:.0f}")
    plots = [
        Courses(backend, f"{backend}: the server's memory after each unload",
                [float(each) for each in range(len(course.resident_kib))],
                {"MiB": [kib / 1024 for kib in course.resident_kib]}, across="cycles")
        for backend, course in courses.items()
    ]  # fmt: skip
    return Section("cycles", _ABOUT, rows, plots=plots, versions=[version], failures=failures)


def _row(backend: str, course: Course, grows: float, bound: float) -> Row:
    return {
        "backend": backend,
        "cycles": len(course.resident_kib),
        "ms to load": round(float(np.median(course.load_s)) * 1e3, 1),
        "MiB after the first": round(course.resident_kib[0] / 1024, 1),
        "after the last": round(course.resident_kib[-1] / 1024, 1),
        "KiB a cycle, second half": round(grows, 2),
        "bound": bound,
        "held": "yes" if grows <= bound else "no",
        "open files": f"{course.files[0]} to {course.files[-1]}",
        "threads": f"{course.threads[0]} to {course.threads[-1]}",
        "mappings": f"{course.mappings[0]} to {course.mappings[-1]}",
        "of compiled code": f"{course.compiled[0]} to {course.compiled[-1]}",
    }


def differing_section(courses: Mapping[str, Course]) -> Section:
    """Of artifacts that differ; what the first brings is not counted."""
    rows: list[Row] = []
    failures = []
    for backend, course in courses.items():
        grows, bound = slope(course.resident_kib[1:]), ARTIFACT_BOUNDS_KIB[backend]
        if grows > bound:
            failures.append(f"{backend} grows by {grows:.0f} KiB an artifact, and may by {bound:.0f}")
        rows.append(
            {
                "backend": backend,
                "artifacts": len(course.resident_kib),
                "s to load": round(float(np.median(course.load_s)), 1),
                "KiB an artifact": round(grows),
                "bound": bound,
                "held": "yes" if grows <= bound else "no",
                "mappings an artifact": round(slope(course.mappings[1:]), 1),
                "of them compiled code": round(slope(course.compiled[1:]), 1),
            }
        )
    return Section("artifacts that differ", _ABOUT_DIFFERING, rows, failures=failures)


_ABOUT = """\
A small model, loaded and unloaded by RPC. Memory is the server's, once what the model had is freed and given back;
files, threads and mappings are those after the first unload, and after the last. Each load is of the same artifact:
what `torch_compile` and `torchao` have compiled stays in the process, and is found there again."""
_ABOUT_DIFFERING = """\
The same with an artifact each time of which nothing is in the cache, from the second on: libraries of compiled code
that a process has loaded for Python stay mapped until it ends. A server that is given a new compiled artifact every day
needs as much more memory each day. Of `aot_inductor`, whose library is mapped anew by each load, the table above has
what is left."""
