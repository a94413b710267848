"""Whether loading and unloading leaves something behind: memory, files, threads and mappings, for each backend.

    python -m benchmarks.cycles --output docs/benchmarks/cycles

A small model is loaded and unloaded by RPC, again and again, in a server of its own for each backend. What counts is
the slope of the server's memory over the second half: a first load brings libraries and pools that stay.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from benchmarks.plots import Courses
from benchmarks.report import Row, Section, write_report
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from tests.e2e.encoders import bucketed, write_encoder
from tests.e2e.server_process import echo_config, write_model

_ROOT = Path(__file__).parents[1]
_NAME = "cycled"
_NEVER_S = 1800.0
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


@dataclass(slots=True)
class Course:
    """What a server held after each unload: memory in KiB, open files, threads, and mappings."""

    resident_kib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    mappings: list[int] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)

    def note(self, pid: int, load_s: float) -> None:
        """Look at the process now."""
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        self.resident_kib.append(float(status["VmRSS"].split()[0]))
        self.threads.append(int(status["Threads"]))
        self.files.append(len(list((process / "fd").iterdir())))
        self.mappings.append(len((process / "maps").read_text().splitlines()))
        self.load_s.append(load_s)


def slope(values: Sequence[float]) -> float:
    """By how much values grow from one to the next, by least squares; 0 of a single one."""
    if len(values) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), np.asarray(values, np.float64), 1)[0])


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backends", nargs="+", choices=BOUNDS_KIB, default=list(BOUNDS_KIB), help="which (default: all)")
    add("--cycles", type=int, default=200, help="how often each is loaded and unloaded (default 200)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "cycles", help="the page to write")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    courses: dict[str, Course] = {}
    version = ""
    for backend in arguments.backends:
        print(f"{backend}: {arguments.cycles} cycles", file=sys.stderr, flush=True)
        courses[backend], version = measure(backend, arguments.cycles)
        section = _section(courses, version)
        command = f"python -m benchmarks.cycles {' '.join(sys.argv[1:])}".strip()
        write_report([section], arguments.output, command)
    print(section.markdown)
    raise SystemExit(bool(section.failures))


def measure(backend: str, cycles: int) -> tuple[Course, str]:
    """Load and unload a model of ``backend`` in a server of its own."""
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place) / "repository"
        _WRITERS[backend](repository)
        options = ["--model-control-mode", "explicit", "--cache-dir", str(Path(place) / "cache")]
        with PreheatServer(repository, options=options) as server:
            course = Course()
            with grpcclient.InferenceServerClient(server.grpc_address) as client:
                for _ in range(cycles):
                    began_s = time.perf_counter()
                    client.load_model(_NAME, client_timeout=_NEVER_S)
                    load_s = time.perf_counter() - began_s
                    freed = server.log.count(f"{_NAME}/1 freed")
                    client.unload_model(_NAME)
                    # The call returns before what it had is freed.
                    while server.log.count(f"{_NAME}/1 freed") == freed:
                        time.sleep(0.005)
                    course.note(server.pid, load_s)
            return course, server_version(server.grpc_address)


def _section(courses: Mapping[str, Course], version: str) -> Section:
    rows, failures = [], []
    for backend, course in courses.items():
        half = course.resident_kib[len(course.resident_kib) // 2 :]
        grows = slope(half)
        bound = BOUNDS_KIB[backend]
        if grows > bound:
            failures.append(f"{backend} grows by {grows:.1f} KiB a cycle, and may by {bound:.0f}")
        rows.append(_row(backend, course, grows, bound))
    counts = list(range(max(len(course.resident_kib) for course in courses.values())))
    plots = [
        Courses(f"{backend}", f"{backend}: the server's memory after each unload", [float(each) for each in counts],
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
        "open files": f"{course.files[0]} to {course.files[-1]}",
        "threads": f"{course.threads[0]} to {course.threads[-1]}",
        "mappings": f"{course.mappings[0]} to {course.mappings[-1]}",
    }


def _write_double(repository: Path) -> None:
    write_model(repository, _NAME, echo_config())


def _write_python(repository: Path) -> None:
    folder = write_model(repository, _NAME, _PYTHON_CONFIG)
    (folder / "1" / "model.py").write_text(_PYTHON)


def _write_encoder(backend: str, **parameters: str) -> Callable[[Path], None]:
    def write(repository: Path) -> None:
        write_encoder(repository, _NAME, backend, rows=2, parameters={"preheat.buckets": "2", **parameters})

    return write


def _export(script: str, backend: str) -> Callable[[Path], None]:
    def write(repository: Path) -> None:
        folder = write_model(repository, _NAME, _MATRIX_CONFIG.format(backend=backend))
        _run("-c", script, str(folder / "1"))

    return write


def _write_package(repository: Path) -> None:
    source = repository.parent / "source" / _NAME
    write_encoder(source.parent, _NAME, "eager", rows=2)
    repository.mkdir()
    _run("-m", "preheat_backends.aot_inductor.build", str(source), str(repository / _NAME))


def _run(*arguments: str) -> None:
    """A process of its own: exporters leave much behind."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)  # noqa: S603 - it is this project's own


_PYTHON = """
from triton_python_backend_utils import InferenceResponse, Tensor, get_input_tensor_by_name

class TritonPythonModel:
    def execute(self, requests):
        return [
            InferenceResponse([Tensor("y", get_input_tensor_by_name(request, "x").as_numpy())]) for request in requests
        ]
"""
_PYTHON_CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
_MATRIX_CONFIG = """
backend: "{backend}"
max_batch_size: 2
input {{ name: "x" data_type: TYPE_FP32 dims: [ 64 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 64 ] }}
"""
_ONNX = """
import sys
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in "xy"]
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", tensors[:1], tensors[1:], [weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
onnx.save(model, sys.argv[1] + "/model.onnx")
"""
_TORCHSCRIPT = """
import sys, warnings
import torch
warnings.simplefilter("ignore")
class Matrix(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
    def forward(self, x):
        return self.layer(x)
torch.jit.trace(Matrix().eval(), torch.zeros(2, 64)).save(sys.argv[1] + "/model.pt")
"""
_WRITERS: Mapping[str, Callable[[Path], None]] = {
    "double": _write_double,
    "python": _write_python,
    "eager": _write_encoder("eager"),
    "torchscript": _export(_TORCHSCRIPT, "torchscript"),
    "onnxruntime": _export(_ONNX, "onnxruntime"),
    "openvino": _export(_ONNX, "openvino"),
    "torch_compile": _write_encoder("torch_compile", **bucketed("8")),
    "torchao": _write_encoder("torchao", **bucketed("8"), quantization="int8_weight_only", compile="true"),
    "aot_inductor": _write_package,
}
_ABOUT = """\
A small model, loaded and unloaded by RPC. Memory is the server's, once what the model had is freed and given back;
files, threads and mappings are those after the first unload, and after the last. Each load is of the same artifact:
what `torch_compile` and `torchao` have compiled stays in the process, and is found there again; another artifact's
comes to it."""


if __name__ == "__main__":
    main()
