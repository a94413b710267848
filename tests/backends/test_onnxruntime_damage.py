"""Graphs that ONNX Runtime cannot serve: each is refused with its path and the reason, and the process lives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.backends.cases import LINEAR, make_inputs, make_source, onnx_tensor, opened, save_linear_graph

from preheat.errors import InvalidArtifact, InvalidConfig
from preheat.tensors import DataType
from preheat_backends.onnxruntime import OnnxRuntimeBackend


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with the linear graph as version 1."""
    (tmp_path / "1").mkdir()
    save_linear_graph(tmp_path / "1")
    return tmp_path


def load(folder: Path) -> None:
    """Load as the server does, and answer once."""
    source, backend = make_source(folder), OnnxRuntimeBackend()
    backend.complete(source)
    with opened(backend.load(source, LINEAR)) as session:
        session.infer(make_inputs(LINEAR, 2))


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def _custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def _domain_without_version(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Gemmm"


def _unknown_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("transC", 1))


def _dangling_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["b"], ["a"]))
    model.graph.node.append(helper.make_node("Neg", ["a"], ["b"]))


def _wrong_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [4, 3]


def _short_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"\0" * 8


def _external(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for weight in model.graph.initializer:
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=location)

    return change


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (_opset, ["Opset 99 is under development", "till opset"]),
        (_ir_version, ["cannot load it: Unsupported model IR version: 99, max supported IR version"]),
        (_custom_domain, ["com.example:Gemm", "is not a registered function/op"]),
        (_domain_without_version, ["No opset import for domain 'com.example'"]),
        (_unknown_operator, ["Gemmm"]),
        (_unknown_attribute, ["transC"]),
        (_dangling_input, ["nowhere"]),
        (_cycle, ["acyclic"]),
        (_wrong_weight, ["Gemm"]),
        (_short_weight, ["weight"]),
        (_external("nothing.bin"), ["nothing.bin"]),
        (_external("../outside.bin"), ["outside.bin", "escapes model directory"]),
        (_external("/etc/hostname"), ["Absolute path not allowed"]),
        (_external("short.bin"), ["size to read", "file_length: 10 are out of bounds"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else value[0][:20],
)
def test_a_graph_that_cannot_run_is_refused_with_its_path_and_the_reason(
    folder: Path, change: Callable[[onnx.ModelProto], None], fragments: list[str]
) -> None:
    path = folder / "1" / "model.onnx"
    (folder / "outside.bin").write_bytes(bytes(1000))
    (folder / "1" / "short.bin").write_bytes(bytes(10))
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArtifact) as refusal:
        load(folder)
    assert str(refusal.value).startswith(f"{path}: onnxruntime cannot load it: ")
    for fragment in fragments:
        assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_cut_short_anywhere_is_refused_by_its_path(folder: Path) -> None:
    path = folder / "1" / "model.onnx"
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidArtifact, match=str(path)):
            load(folder)


def test_a_file_with_one_byte_damaged_loads_or_is_refused_in_words(folder: Path) -> None:
    path = folder / "1" / "model.onnx"
    content = path.read_bytes()
    refusals = []
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            load(folder)
        except (InvalidArtifact, InvalidConfig) as exc:
            refusals.append(str(exc))
    assert all(str(folder) in refusal for refusal in refusals)
    assert len(refusals) > len(content) / 3 / 4


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (onnx_tensor("x", DataType.INT64, ["batch", 4]), "input 'x': FP32; the artifact .* has 'x' INT64"),
        (onnx_tensor("x", DataType.FP32, ["batch", 4, 1]), r"input 'x': \[.*\]; the artifact .* has 'x' FP32 \["),
        (onnx_tensor("x", DataType.FP32, ["batch", 5]), r"input 'x': \[.*4\]; the artifact .* has 'x' FP32 \[.*5\]"),
        (onnx_tensor("X", DataType.FP32, ["batch", 4]), "input 'x': no such input; the artifact .* has 'X' FP32"),
        (
            onnx_tensor("x", DataType.FP32, [1, 4]),
            r"input 'x': batches of 1 to 8; the artifact .* has 'x' FP32 \[1, 4\]",
        ),
    ],
    ids=["datatype", "rank", "size", "name", "fixed batch"],
)
def test_a_graph_of_another_signature_is_refused_with_both(
    folder: Path, tensor: onnx.ValueInfoProto, message: str
) -> None:
    path = folder / "1" / "model.onnx"
    model = onnx.load(path)
    model.graph.input[0].CopyFrom(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: {message}"):
        load(folder)


def test_an_input_of_the_wrong_size_fails_its_batch_only(folder: Path) -> None:
    """The server lets none through; ONNX Runtime would tell."""
    with opened(OnnxRuntimeBackend().load(make_source(folder), LINEAR)) as session:
        good = session.infer(make_inputs(LINEAR, 2))
        with pytest.raises(Exception, match=r"^onnxruntime: Got invalid dimensions for input: x"):
            session.infer({"x": np.zeros((2, 5), np.float32)})
        np.testing.assert_array_equal(session.infer(make_inputs(LINEAR, 2))["y"], good["y"])
