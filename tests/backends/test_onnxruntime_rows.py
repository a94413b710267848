"""Whether a graph's rows depend on each other, and 8-bit graphs whose answers do not depend on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.backends.cases import LINEAR, make_source, onnx_tensor, opened, save_graph, save_linear_graph

from preheat.backend import Dimension, Signature, TensorSpec
from preheat.errors import InvalidArtifact
from preheat.tensors import Array, DataType
from preheat_backends.onnx_signature import read_operators
from preheat_backends.onnxruntime import OnnxRuntimeBackend

WIDTH = 64
ROWS = Signature(
    (TensorSpec("x", DataType.FP32, (Dimension.fixed(WIDTH),)),),
    (TensorSpec("y", DataType.FP32, (Dimension.fixed(8),)),),
    8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose version 1 is still empty."""
    (tmp_path / "1").mkdir()
    return tmp_path


def save_dynamically_quantized(folder: Path) -> None:
    """One matrix multiplication as dynamic quantization leaves it: activations are scaled by their largest element."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.integers(-127, 128, (WIDTH, 8)).astype(np.int8), "weight"),
        numpy_helper.from_array(np.array(0.01, np.float32), "weight_scale"),
        numpy_helper.from_array(np.array(0, np.int8), "weight_zero"),
    ]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["quantized", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["quantized", "weight", "zero", "weight_zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "weight_scale"], ["factor"]),
        helper.make_node("Mul", ["real", "factor"], ["y"]),
    ]
    inputs = [onnx_tensor("x", DataType.FP32, ["batch", WIDTH])]
    save_graph(
        folder, helper.make_graph(nodes, "dynamic", inputs, [onnx_tensor("y", DataType.FP32, ["batch", 8])], weights)
    )


def test_a_dynamically_quantized_graph_says_that_its_rows_depend_on_each_other(folder: Path) -> None:
    save_dynamically_quantized(folder / "1")
    assert not OnnxRuntimeBackend().complete(make_source(folder)).row_independent


def test_the_rows_of_such_a_graph_do_depend_on_each_other(folder: Path) -> None:
    """The reason to say so: a row's answer changes with a peer that is larger."""
    save_dynamically_quantized(folder / "1")
    random = np.random.default_rng(1)
    row, peer = random.standard_normal((1, WIDTH), np.float32), 100 * random.standard_normal((1, WIDTH), np.float32)
    with opened(OnnxRuntimeBackend().load(make_source(folder), ROWS)) as session:
        alone = session.infer({"x": row})["y"][0]
        together = session.infer({"x": np.concatenate([row, peer])})["y"][0]
    assert abs(alone - together).max() > 0.1 * abs(alone).max()


def test_other_graphs_rows_are_independent(folder: Path) -> None:
    save_linear_graph(folder / "1")
    assert OnnxRuntimeBackend().complete(make_source(folder)).row_independent


def test_operators_are_found_in_branches_and_functions_too(folder: Path) -> None:
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("DynamicQuantizeLinear", ["x"], ["z", "s", "p"])], "t", [], [value]
        ),
        "else_branch": helper.make_graph([helper.make_node("my.Call", ["x"], ["z"], domain="local")], "e", [], [value]),
    }
    function = helper.make_function(
        "local", "my.Call", ["a"], ["b"], [helper.make_node("Erf", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], "choice", None, None, None, **branches)], "g", [], []
    )
    onnx.save(helper.make_model(graph, functions=[function]), folder / "1" / "model.onnx")
    assert read_operators(folder / "1" / "model.onnx") == {"If", "DynamicQuantizeLinear", "my.Call", "Erf"}


def test_a_graph_nested_without_end_is_refused(folder: Path) -> None:
    """Each level is a node with a graph in its attribute."""
    graph = b""
    for _ in range(5000):
        for field in (0x32, 0x2A, 0x0A):  # the graph of an attribute, of a node, of a graph
            graph = bytes([field]) + _varint(len(graph)) + graph
    (folder / "1" / "model.onnx").write_bytes(b"\x08\x0a\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(InvalidArtifact, match=r"model\.onnx: damaged ONNX model: .*recursion"):
        OnnxRuntimeBackend().complete(make_source(folder))


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([value])


# --- 8 bits on every CPU -----------------------------------------------------------------------------------------


def save_statically_quantized(folder: Path) -> None:
    """A multiplication by QDQ of the largest weights and activations, whose sums of two products exceed 16 bits."""
    scale, zero = (
        numpy_helper.from_array(np.array(1, np.float32), "one"),
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
    )
    weights = [
        numpy_helper.from_array(np.full((WIDTH, 8), 127, np.int8), "weight"),
        numpy_helper.from_array(np.array(0, np.int8), "weight_zero"),
        numpy_helper.from_array(np.array(2**14, np.float32), "coarse"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "one", "zero"], ["activation"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "weight_zero"], ["matrix"]),
        helper.make_node("MatMul", ["activation", "matrix"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "coarse", "zero"], ["narrow"]),
        helper.make_node("DequantizeLinear", ["narrow", "coarse", "zero"], ["y"]),
    ]
    inputs = [onnx_tensor("x", DataType.FP32, ["batch", WIDTH])]
    outputs = [onnx_tensor("y", DataType.FP32, ["batch", 8])]
    save_graph(folder, helper.make_graph(nodes, "static", inputs, outputs, [scale, zero, *weights]))


def answer(folder: Path, **parameters: str) -> Array:
    source = make_source(folder, parameters=parameters)
    with opened(OnnxRuntimeBackend().load(source, ROWS)) as session:
        return session.infer({"x": np.full((2, WIDTH), 255, np.float32)})["y"]


def test_products_of_8_bits_are_right_whether_the_cpu_has_vnni_or_not(folder: Path) -> None:
    save_statically_quantized(folder / "1")
    exact = 255 * 127 * WIDTH
    np.testing.assert_allclose(answer(folder), exact, atol=2**13)


def test_products_of_8_bits_may_saturate_where_that_is_asked_for(folder: Path) -> None:
    save_statically_quantized(folder / "1")
    exact = 255 * 127 * WIDTH
    assert (answer(folder, saturating_int8="true") <= exact + 2**13).all()


def test_an_8_bit_graph_answers_as_its_unoptimized_self(folder: Path) -> None:
    """Optimization replaces the quantized multiplication by one of integers."""
    save_statically_quantized(folder / "1")
    np.testing.assert_array_equal(answer(folder), answer(folder, graph_optimization_level="disabled"))


def test_spinning_and_saturation_are_off_unless_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_linear_graph(folder / "1")
    entries = []
    real = ort.InferenceSession

    def build(path: Path, options: Any, **others: Any) -> Any:
        keys = ("session.intra_op.allow_spinning", "session.x64quantprecision")
        entries.append([options.get_session_config_entry(key) for key in keys])
        return real(path, options, **others)

    monkeypatch.setattr(ort, "InferenceSession", build)
    for parameters in ({}, {"allow_spinning": "true", "saturating_int8": "true"}):
        OnnxRuntimeBackend().load(make_source(folder, parameters=parameters), LINEAR).close()
    assert entries == [["0", "1"], ["1", "0"]]
