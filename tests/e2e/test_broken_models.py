"""Models that cannot be served: each says why, to its callers and in the log, and the others serve."""

import io
import json
import platform
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper
from tests.backends.cases import save_linear_script
from tests.e2e.scrape import scrape
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows
from tests.e2e.wire import Wire, infer_request

AOT_INDUCTOR = 'backend: "aot_inductor"\n'
EAGER = 'backend: "eager"\n'
ONNX = 'backend: "onnxruntime"\n'
GOOD_MODULE = "import torch\ndef build_model():\n    return torch.nn.Linear(2, 2)\n"
TORCHAO = 'backend: "torchao"\nparameters { key: "quantization" value { string_value: "%s" } }\n'
OPENVINO = 'backend: "openvino"\n'
# As much of an OpenVINO model as names its weights.
IR = b"""<?xml version="1.0"?>
<net name="m" version="11">
    <layers>
        <layer id="0" name="weight" type="Const" version="opset1">
            <data element_type="f32" shape="3, 4" offset="0" size="48" />
        </layer>
    </layers>
</net>
"""
SCRIPT = 'platform: "pytorch_libtorch"\n'
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
# The fields of a ModelProto up to a graph that is announced with 100 bytes and has 4.
CUT_ONNX = b"\x08\x08\x12\x04test\x3a\x64" + b"\x0a\x02ab"
# A header that promises 64 bytes of data.
CUT_SAFETENSORS = b'\x40\0\0\0\0\0\0\0{"weight":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}  '
LINEAR_IO = (
    'max_batch_size: 4\ninput { name: "input" data_type: TYPE_FP32 dims: [ 2 ] }\n'
    'output { name: "output" data_type: TYPE_FP32 dims: [ 2 ] }\n'
)


@dataclass(frozen=True, slots=True)
class Broken:
    """A model's folder, and what its failure must name. ``version_files``: what lies in version 1."""

    name: str
    config: str | bytes | None
    fragments: tuple[str, ...]
    version_files: dict[str, bytes] | None = None
    has_version: bool = True

    def write(self, repository: Path) -> None:
        folder = write_model(repository, self.name, None, versions=[1] if self.has_version else [])
        if self.config is not None:
            content = self.config if isinstance(self.config, bytes) else self.config.encode()
            (folder / "config.pbtxt").write_bytes(content)
        for file, content in (self.version_files or {}).items():
            (folder / "1" / file).write_bytes(content)


def _config(name: str, config: str | bytes | None, *fragments: str, has_version: bool = True) -> Broken:
    return Broken(name, config, fragments, has_version=has_version)


def _artifact(name: str, config: str, files: dict[str, bytes], *fragments: str) -> Broken:
    return Broken(name, config, fragments, files)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def _onnx(*, opset: int = 20, domain: str = "") -> bytes:
    """A graph of one node, from x to y."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], domain=domain)], "graph", values[:1], values[1:])
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    content: bytes = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return content


def _archive(*members: str) -> bytes:
    """A zip archive with these members, and nothing of use in them."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member in members:
            archive.writestr(f"archive/{member}", b"\x80\x02}.")
    return content.getvalue()


def _package(**metadata: str) -> bytes:
    """An AOTInductor package as far as it is looked at before its library is."""
    told = {"AOTI_DEVICE_KEY": "cpu", "AOTI_PLATFORM": sys.platform, "AOTI_MACHINE": platform.machine(), **metadata}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model/data/aotinductor/model/m.wrapper.so", b"\x7fELF")
        archive.writestr("model/data/aotinductor/model/m.wrapper_metadata.json", json.dumps(told))
    return content.getvalue()


def _script() -> bytes:
    """A TorchScript archive that could be served."""
    with tempfile.TemporaryDirectory() as folder:
        save_linear_script(Path(folder))
        return (Path(folder) / "model.pt").read_bytes()


CONFIGS = (
    _config("syntax_error", 'backend: "double"\nmax_batch_size: :\n', "config.pbtxt:2:"),
    _config("cut_short", echo_config()[:-20], "config.pbtxt:"),
    _config("not_text", b"\xff\xfe\0", "cannot be read"),
    _config("unknown_field", echo_config(extra="max_batchsize: 8"), "config.pbtxt:3:", "max_batchsize"),
    _config("wrong_type", echo_config().replace("8", '"eight"'), "config.pbtxt:2:"),
    _config("wrong_enum", echo_config(datatype="INT63"), "TYPE_INT63"),
    _config("number_too_large", echo_config(max_batch_size=2**31), "config.pbtxt:2:"),
    _config("no_backend", 'name: "no_backend"', "backend: not set", "model.onnx"),
    _config("unknown_backend", 'backend: "warp"', "'warp'", "there are", "double"),
    _config("unknown_parameter", echo_config(parameters={"colour": "red"}), "colour: unknown", "behavior"),
    _config("bad_number", echo_config(parameters={"every": "often"}), "every: 'often'", "integer"),
    _config("bad_choice", echo_config(parameters={"behavior": "moody"}), "behavior: 'moody'", "identity"),
    _config("bad_server_key", echo_config(parameters={"preheat.bucket": "4"}), "preheat.bucket:", "preheat.buckets"),
    _config("bad_buckets", echo_config(parameters={"preheat.buckets": "2,4"}), "preheat.buckets", "8"),
    _config("bad_axis", echo_config(parameters={"preheat.shape.INPUT7": "row"}), "preheat.shape.INPUT7", "INPUT0"),
    _config("ensemble", echo_config(extra="ensemble_scheduling { }"), "ensemble_scheduling", "not supported"),
    _config("sequences", echo_config(extra="sequence_batching { }"), "sequence_batching", "not supported"),
    _config(
        "decoupled", echo_config(extra="model_transaction_policy { decoupled: true }"), "decoupled", "not supported"
    ),
    _config("cached", echo_config(extra="response_cache { enable: true }"), "response_cache.enable", "not supported"),
    _config("negative_batch", echo_config(max_batch_size=-1), "max_batch_size: -1", "at least 1"),
    _config("joined_without_batch", echo_config(max_batch_size=0), "dynamic_batching", "max_batch_size"),
    _config(
        "preferred_too_large", echo_config(extra="dynamic_batching { preferred_batch_size: [ 9 ] }"),
        "preferred_batch_size: 9", "8",
    ),
    _config("no_instances", echo_config(extra="instance_group { count: -1 }"), "count: -1"),
    _config("on_a_gpu", echo_config(extra="instance_group { kind: KIND_GPU }"), "KIND_GPU", "cuda:0", "cpu"),
    _config("empty_dimension", echo_config(dims=[0]), "'INPUT0'", "dims: 0"),
    _config("no_dimensions", echo_config(dims=[]), "'INPUT0'", "dims"),
    _config("declared_twice", echo_config() + 'input { name: "INPUT0" data_type: TYPE_INT64 dims: [ 4 ] }', "twice"),
    _config("no_tensors", 'backend: "double"', "input", "declare"),
    _config("misnamed", 'name: "something_else"\n' + echo_config(), "'something_else'", "'misnamed'"),
    _config("white space", echo_config(), "white space", "letters"),
    _config("no_version", echo_config(), "no version folder", has_version=False),
    _config("absent_version", echo_config(extra="version_policy { specific { versions: 3 } }"), "[3]", "versions 1"),
    _config(
        "bad_sample",
        echo_config(extra='model_warmup { name: "s" batch_size: 1 inputs { key: "X" value '
                          "{ data_type: TYPE_INT64 dims: [ 4 ] zero_data: true } } }"),
        "model_warmup 's'", "X",
    ),
    _config("told_to_fail", echo_config(parameters={"behavior": "fail_load"}), "told to fail its load"),
    _config("fails_warm_up", echo_config(parameters={"behavior": "fail"}), "warm-up", "batch 8", "told to fail"),
    _config("crashes_in_warm_up", echo_config(parameters={"behavior": "crash"}), "warm-up", "told to crash"),
    _config("few_rows_in_warm_up", echo_config(parameters={"behavior": "few_rows"}), "warm-up", "7 rows"),
)  # fmt: skip

ARTIFACTS = (
    _artifact("eager_without_artifact", EAGER + LINEAR_IO, {}, "model.py", "eager"),
    _artifact("empty_module", EAGER + LINEAR_IO, {"model.py": b""}, "model.py", "empty"),
    _artifact("module_of_bytes", EAGER + LINEAR_IO, {"model.py": b"\0\xff\xfe\x01"}, "model.py"),
    _artifact("module_with_syntax_error", EAGER + LINEAR_IO, {"model.py": b"def build_model(:"}, "SyntaxError"),
    _artifact("module_that_exits", EAGER + LINEAR_IO, {"model.py": b"import sys; sys.exit(3)"}, "SystemExit"),
    _artifact("module_without_model", EAGER + LINEAR_IO, {"model.py": b"model = 1"}, "build_model"),
    _artifact(
        "module_of_nothing", EAGER + LINEAR_IO, {"model.py": b"def build_model(): return 1"}, "int", "torch.nn.Module"
    ),
    _artifact(
        "cut_weights", EAGER + LINEAR_IO, {"model.py": GOOD_MODULE.encode(), "model.safetensors": CUT_SAFETENSORS},
        "model.safetensors",
    ),
    _artifact(
        "weights_that_are_text", EAGER + LINEAR_IO,
        {"model.py": GOOD_MODULE.encode(), "model.safetensors": b"soon\n"}, "model.safetensors", "a text file",
    ),
    _artifact("cut_program", EAGER + LINEAR_IO, {"model.pt2": b"PK\x03\x04" + bytes(60)}, "model.pt2", "cut short"),
    _artifact("program_that_is_onnx", EAGER + LINEAR_IO, {"model.pt2": CUT_ONNX}, "model.pt2", "ONNX"),
    _artifact("onnx_without_artifact", ONNX, {}, "model.onnx", "it holds nothing"),
    _artifact("onnx_of_another_name", ONNX, {"modell.onnx": b"x"}, "model.onnx", "modell.onnx"),
    _artifact("empty_onnx", ONNX, {"model.onnx": b""}, "an empty file"),
    _artifact("cut_onnx", ONNX, {"model.onnx": CUT_ONNX}, "cut short"),
    _artifact("onnx_that_is_text", ONNX, {"model.onnx": b"soon\n"}, "a text file"),
    _artifact("onnx_not_pulled", ONNX, {"model.onnx": LFS_POINTER}, "git lfs pull"),
    _artifact("onnx_of_another_kind", ONNX, {"model.onnx": b"ftrt" + bytes(60)}, "TensorRT"),
    _artifact(
        "onnx_for_another_engine", ONNX + _parameter("execution_provider", "rocm"), {"model.onnx": b"x"},
        "execution_provider: 'rocm'", "cpu, cuda, tensorrt",
    ),
    _artifact(
        "onnx_in_half_a_precision", ONNX + _parameter("tensorrt_fp16", "true"), {"model.onnx": b"x"},
        "tensorrt_fp16: 'true'", "goes with execution_provider: tensorrt",
    ),
    _artifact("onnx_of_the_future", ONNX, {"model.onnx": _onnx(opset=99)}, "Opset 99", "till opset"),
    _artifact("onnx_of_its_own", ONNX, {"model.onnx": _onnx(domain="com.example")}, "com.example:Neg"),
    _artifact(
        "onnx_of_other_tensors", ONNX + LINEAR_IO, {"model.onnx": _onnx()}, "input 'input'", "no such input", "'x'"
    ),
    _artifact(
        "onnx_elsewhere", ONNX + 'default_model_filename: "../../good/1/model.onnx"', {"model.onnx": b"x"},
        "default_model_filename", "'../../good/1/model.onnx'",
    ),
    _artifact(
        "quantized_to_what", TORCHAO % "int3" + LINEAR_IO, {"model.py": GOOD_MODULE.encode()},
        "quantization: 'int3'", "int8_dynamic", "pt2e_static",
    ),
    _artifact(
        "fp8_on_a_cpu", TORCHAO % "fp8_dynamic" + LINEAR_IO, {"model.py": GOOD_MODULE.encode()},
        "quantization: 'fp8_dynamic'", "8.9", "cpu", "int8",
    ),
    _artifact(
        "int4_of_few_inputs", TORCHAO % "int4_weight_only" + LINEAR_IO, {"model.py": GOOD_MODULE.encode()},
        "model.py", "no multiple of group_size: 128",
    ),
    _artifact(
        "graph_not_compiled", TORCHAO % "pt2e_static" + LINEAR_IO, {"model.py": GOOD_MODULE.encode()},
        "quantization: 'pt2e_static'", "compile: true", "freezing: true",
    ),
    _artifact(
        "no_checkpoint", TORCHAO % "checkpoint" + LINEAR_IO, {"model.py": GOOD_MODULE.encode()},
        "model.safetensors", "model.pt", "neither is there",
    ),
    _artifact(
        "foreign_checkpoint", TORCHAO % "checkpoint" + LINEAR_IO,
        {"model.py": GOOD_MODULE.encode(), "model.pt": b"\x80\x04}."}, "model.pt", "a Python pickle",
    ),
    _artifact("openvino_without_artifact", OPENVINO, {}, "no model.xml and no model.onnx", "it holds nothing"),
    _artifact("ir_without_weights", OPENVINO, {"model.xml": IR}, "model.xml", "weights are missing", "model.bin"),
    _artifact(
        "ir_with_others_weights", OPENVINO, {"model.xml": IR, "model.bin": bytes(52)}, "model.bin has 52 bytes",
        "refers to 48 bytes", "another model's",
    ),
    _artifact(
        "ir_with_cut_weights", OPENVINO, {"model.xml": IR, "model.bin": bytes(40)},
        "model.bin has 40 bytes", "cut short",
    ),
    _artifact("cut_ir", OPENVINO, {"model.xml": IR[:-8], "model.bin": bytes(48)}, "does not end with </net>"),
    _artifact(
        "ir_of_the_past", OPENVINO, {"model.xml": IR.replace(b"11", b"6"), "model.bin": bytes(48)},
        "IR version is 6", "10 and 11",
    ),
    _artifact("ir_without_inputs", OPENVINO, {"model.xml": IR, "model.bin": bytes(48)}, "input: not set", "artifact"),
    _artifact(
        "ir_of_no_layers", OPENVINO, {"model.xml": IR.replace(b"<layers>", b"<layer>"), "model.bin": bytes(48)},
        "model.xml: openvino cannot load it", "mismatch",
    ),
    _artifact(
        "ir_that_is_other_xml", OPENVINO, {"model.xml": b"<graph />"}, "a text file", "an OpenVINO IR model (.xml with"
    ),
    _artifact("ir_by_another_name", OPENVINO, {"model.onnx": IR}, "model.onnx is an OpenVINO IR model"),
    _artifact(
        "openvino_in_streams", OPENVINO + _parameter("num_streams", "2"), {"model.onnx": _onnx()},
        "num_streams: unknown parameter", "allowed: inference_precision",
    ),
    _artifact(
        "openvino_of_other_tensors", OPENVINO + LINEAR_IO, {"model.onnx": _onnx()}, "input 'input'", "no such input"
    ),
    _artifact("openvino_of_its_own", OPENVINO, {"model.onnx": _onnx(domain="com.example")}, "com.example.Neg"),
    _artifact("script_without_artifact", SCRIPT + LINEAR_IO, {}, "no model.pt", "'torchscript' takes"),
    _artifact("cut_script", SCRIPT + LINEAR_IO, {"model.pt": b"PK\x03\x04" + bytes(60)}, "model.pt", "cut short"),
    _artifact(
        "script_that_is_a_checkpoint", SCRIPT + LINEAR_IO, {"model.pt": _archive("data.pkl")},
        "a torch.save checkpoint", "a TorchScript archive (.pt)",
    ),
    _artifact(
        "script_that_is_a_program", SCRIPT + LINEAR_IO, {"model.pt": _archive("serialized_exported_program.json")},
        "a torch.export program", "a TorchScript archive (.pt)",
    ),
    _artifact(
        "script_of_nothing", SCRIPT + LINEAR_IO, {"model.pt": _archive("constants.pkl")}, "torch.jit cannot load it"
    ),
    _artifact("script_not_pulled", SCRIPT + LINEAR_IO, {"model.pt": LFS_POINTER}, "git lfs pull"),
    _artifact(
        "script_not_frozen", SCRIPT + LINEAR_IO + _parameter("freeze", "a bit"), {"model.pt": b"x"},
        "freeze: 'a bit'", "must be true or false",
    ),
    _artifact("script_not_declared", SCRIPT, {"model.pt": _script()}, "input", "declare"),
    _artifact("package_missing", AOT_INDUCTOR + LINEAR_IO, {}, "model.pt2", "it holds nothing"),
    _artifact("package_that_is_text", AOT_INDUCTOR + LINEAR_IO, {"model.pt2": b"soon\n"}, "a text file"),
    _artifact(
        "package_for_another_machine", AOT_INDUCTOR + LINEAR_IO, {"model.pt2": _package(AOTI_MACHINE="m68k")},
        "compiled for processors of type 'm68k'", "build it on such a machine",
    ),
    _artifact(
        "package_for_another_cpu", AOT_INDUCTOR + LINEAR_IO, {"model.pt2": _package(AOTI_CPU_ISA="AVX1024")},
        "a CPU with avx1024", "--isa avx2",
    ),
    _artifact(
        "package_for_a_gpu", AOT_INDUCTOR + LINEAR_IO, {"model.pt2": _package(AOTI_DEVICE_KEY="cuda")},
        "compiled for cuda, and the model is on cpu", "KIND_GPU",
    ),
    _artifact(
        "package_of_another_network", AOT_INDUCTOR + LINEAR_IO + _parameter("model_name", "decoder"),
        {"model.pt2": _package()}, "model_name: 'decoder'", "the package has 'model'",
    ),
    _artifact(
        "package_cut_short", AOT_INDUCTOR + LINEAR_IO, {"model.pt2": _package()[:-30]}, "cut short or damaged",
    ),
)  # fmt: skip

BROKEN = (*CONFIGS, *ARTIFACTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for broken in BROKEN:
        broken.write(first)
    write_model(first, "good", echo_config())
    write_model(second, "also_good", echo_config(), versions=[1, 2])
    write_model(first, "in_two_places", echo_config())
    write_model(second, "in_two_places", echo_config())
    (first / "a_file").write_text("no model")
    (first / ".hidden").mkdir()
    with ServerProcess(first, second) as server:
        yield server
        assert server.running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def _log_of(server: ServerProcess, model: str) -> str:
    """The line that says that a model failed."""
    starts = (f"preheat.models: {model} FAILED: ", f"preheat.models: {model}/1 FAILED: ")
    lines = [line for line in server.log.splitlines() if any(start in line for start in starts)]
    assert len(lines) == 1, f"{len(lines)} lines say that {model} failed"
    return lines[0]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_model_says_why_to_its_callers_and_in_the_log(server: ServerProcess, broken: Broken) -> None:
    with Wire(server.grpc_address) as wire:
        status = wire.status("ModelInfer", infer_request(broken.name, []))
    logged = _log_of(server, broken.name)
    assert status.code is grpc.StatusCode.NOT_FOUND
    assert f"'{broken.name}' has no available versions" in status.text
    for fragment in broken.fragments:
        assert fragment in status.text
        assert fragment in logged


def test_a_model_in_two_repositories_is_in_neither(server: ServerProcess, client: Any) -> None:
    with pytest.raises(grpcclient.InferenceServerException, match="two or more repositories") as refusal:
        client.infer("in_two_places", infer_inputs({"INPUT0": unique_rows(1, start=0)}))
    assert refusal.value.status() == "StatusCode.NOT_FOUND"
    assert "two or more repositories" in _log_of(server, "in_two_places")


@pytest.mark.parametrize("model", ["good", "also_good"])
def test_the_others_serve(client: Any, model: str) -> None:
    rows = unique_rows(3, start=7)
    assert (client.infer(model, infer_inputs({"INPUT0": rows})).as_numpy("OUTPUT0") == rows).all()
    assert client.is_model_ready(model)


def test_the_newest_version_serves_unless_the_configuration_asks_for_more(client: Any) -> None:
    assert list(client.get_model_metadata("also_good").versions) == ["2"]
    with pytest.raises(grpcclient.InferenceServerException, match="version 1 is not found"):
        client.get_model_metadata("also_good", "1")


def test_the_server_is_up_but_not_ready_and_names_what_failed(server: ServerProcess, client: Any) -> None:
    assert client.is_server_live()
    assert not client.is_server_ready()
    summary = next(line for line in server.log.splitlines() if "not ready: 2 model versions" in line)
    for broken in BROKEN:
        assert broken.name in summary
        assert not client.is_model_ready(broken.name)


def test_the_metrics_show_failed_versions_as_failed(server: ServerProcess) -> None:
    found = scrape(server)
    assert found.state("told_to_fail") == ["FAILED"]
    assert found.state("good") == ["READY"]


def test_files_and_hidden_folders_are_no_models(server: ServerProcess) -> None:
    assert "a_file" not in server.log
    assert "hidden" not in server.log


def test_an_empty_repository_is_ready_with_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_address) as client:
        assert client.is_server_ready()
        assert "ready: 0 model versions" in server.log
