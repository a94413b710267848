"""Whether loading and unloading leaves something behind: memory, files, threads and mappings, for each backend.

    python -m benchmarks.cycles --output docs/benchmarks/cycles

A small model is loaded and unloaded by RPC, again and again, in a server of its own for each backend. What counts is
the slope of the server's memory over the second half: a first load brings libraries and pools that stay. Then the same
with artifacts that differ, where what is compiled of one is of no use to the next.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import tritonclient.grpc as grpcclient
from benchmarks.cycle_courses import ARTIFACT_BOUNDS_KIB, BOUNDS_KIB, Course, differing_section, same_section
from benchmarks.report import Section, write_report
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from tests.e2e.encoders import bucketed, write_encoder
from tests.e2e.server_process import echo_config, write_model

_ROOT = Path(__file__).parents[1]
_NAME = "cycled"
_NEVER_S = 1800.0


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backends", nargs="+", choices=BOUNDS_KIB, default=list(BOUNDS_KIB), help="which (default: all)")
    add("--cycles", type=int, default=200, help="how often each is loaded and unloaded (default 200)")
    add("--artifacts", type=int, default=8, help="how many that differ, of each that compiles as it loads (default 8)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "cycles", help="the page to write")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    same: dict[str, Course] = {}
    differing: dict[str, Course] = {}
    sections: list[Section] = []
    for backend in arguments.backends:
        print(f"{backend}: {arguments.cycles} cycles", file=sys.stderr, flush=True)
        same[backend], version = measure(backend, arguments.cycles)
        if arguments.artifacts and backend in ARTIFACT_BOUNDS_KIB:
            print(f"{backend}: {arguments.artifacts} artifacts", file=sys.stderr, flush=True)
            differing[backend], version = measure(backend, arguments.artifacts, change=_change_encoder)
        sections = [same_section(same, version), *([differing_section(differing)] if differing else [])]
        write_report(sections, arguments.output, _shown_command(arguments))
    for section in sections:
        print(section.markdown)
    raise SystemExit(any(section.failures for section in sections))


def _shown_command(arguments: argparse.Namespace) -> str:
    chosen = "" if arguments.backends == list(BOUNDS_KIB) else f" --backends {' '.join(arguments.backends)}"
    return f"python -m benchmarks.cycles{chosen} --cycles {arguments.cycles} --artifacts {arguments.artifacts}"


def measure(backend: str, cycles: int, change: Callable[[Path, int], None] | None = None) -> tuple[Course, str]:
    """Load and unload a model of ``backend`` in a server of its own, after a ``change`` each time if one is given."""
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place) / "repository"
        _WRITERS[backend](repository)
        options = ["--model-control-mode", "explicit", "--cache-dir", str(Path(place) / "cache")]
        with PreheatServer(repository, options=options) as server:
            course = Course()
            with grpcclient.InferenceServerClient(server.grpc_address) as client:
                for number in range(cycles):
                    if change is not None:
                        change(repository / _NAME / "1", number)
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


def _change_encoder(version: Path, number: int) -> None:
    """Have the module compute something else, so that nothing of what was compiled before will do."""
    code = (version / "model.py").read_text()
    answer = re.compile(r'"pooled": .*\}')
    assert answer.search(code), f"{version} does not answer as it did"
    (version / "model.py").write_text(answer.sub(f'"pooled": pooled * {number + 2}.0}}', code))


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

if __name__ == "__main__":
    main()
