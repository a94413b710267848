"""The ONNX Runtime backend's own promises: what it reads off a file without loading it, and what it asks for."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as failures
from tests.backends.cases import (
    LINEAR,
    linear_reference,
    make_inputs,
    make_source,
    onnx_tensor,
    opened,
    save_graph,
    save_linear_graph,
)

from preheat.backend import Dimension, PartialConfig, Signature, TensorSpec
from preheat.errors import BackendMissing, ExecutionFailed, InvalidArtifact, InvalidConfig, InvalidRequest
from preheat.tensors import DataType, Tensors
from preheat_backends.onnx_signature import read_signature
from preheat_backends.onnxruntime import OnnxRuntimeBackend

SAMPLES = sorted(Path(onnx.__file__).parent.glob("backend/test/data/*/*/model.onnx"))
ANY = Dimension("n")
X = TensorSpec("x", DataType.FP32, (ANY,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose version 1 is still empty."""
    (tmp_path / "1").mkdir()
    return tmp_path


def save(folder: Path, nodes: Sequence[onnx.NodeProto], *values: onnx.ValueInfoProto, inputs: int = 1) -> None:
    """Save a graph of ``nodes``; the first ``inputs`` of ``values`` are its inputs, the others its outputs."""
    graph = helper.make_graph(nodes, "graph", values[:inputs], values[inputs:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "1" / "model.onnx")


def complete(folder: Path) -> PartialConfig:
    return OnnxRuntimeBackend().complete(make_source(folder))


def run(folder: Path, declared: Signature, inputs: Tensors, **parameters: str) -> Tensors:
    with opened(OnnxRuntimeBackend().load(make_source(folder, parameters=parameters), declared)) as session:
        return session.infer(inputs)


def test_it_reads_what_onnx_runtime_reads() -> None:
    """On every sample that onnx ships: names, types and, as far as a session tells them, shapes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    read = 0
    for path in SAMPLES:
        signature = read_signature(path)
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (failures.Fail, failures.NotImplemented):  # operators of training, or that it keeps no more
            continue
        for mine, theirs in ((signature.inputs, session.get_inputs()), (signature.outputs, session.get_outputs())):
            assert [tensor.name for tensor in mine] == [value.name for value in theirs]
            for tensor, value in zip(mine, theirs, strict=True):
                assert _TYPES[value.type] is tensor.datatype
                assert tensor.shape is not None
                sizes = [axis.name if axis.size is None else axis.size for axis in tensor.shape]
                assert sizes == value.shape
                read += 1
    assert read > 100


_TYPES = {
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(int64)": DataType.INT64,
    "tensor(int32)": DataType.INT32,
    "tensor(bool)": DataType.BOOL,
    "tensor(string)": DataType.BYTES,
}


def test_axes_are_named_by_their_symbols_and_hold_at_least_one_on_the_way_in(folder: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    save(
        folder,
        [node],
        onnx_tensor("x", DataType.FP32, ["batch", None, 3]),
        onnx_tensor("y", DataType.FP32, ["", -1, 3]),
    )
    partial = complete(folder)
    assert partial.inputs[0].shape == (Dimension("batch", minimum=1), Dimension(minimum=1), Dimension.fixed(3))
    # Nothing found is an answer, too.
    assert partial.outputs[0].shape == (Dimension(), Dimension(), Dimension.fixed(3))


def test_a_scalar_is_told_from_a_tensor_of_unknown_rank(folder: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0), helper.make_node("Reshape", ["x", "s"], ["y"])]
    values = [onnx_tensor("x", DataType.FP32, ["n"]), onnx_tensor("s", DataType.INT64, ["rank"])]
    scalar, unknown = onnx_tensor("sum", DataType.FP32, []), onnx_tensor("y", DataType.FP32, None)
    save(folder, nodes[:1], values[0], scalar)
    assert complete(folder).outputs == (TensorSpec("sum", DataType.FP32, ()),)
    save(folder, nodes, *values, scalar, unknown, inputs=2)
    partial = complete(folder)
    assert [spec.name for spec in partial.inputs] == ["x", "s"]
    assert partial.outputs == ()
    declared = Signature(partial.inputs, (TensorSpec("y", DataType.FP32, (ANY, ANY)),))
    answer = run(folder, declared, {"x": np.arange(6, dtype=np.float32), "s": np.array([2, 3])})
    assert answer["y"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_only_the_declared_outputs_are_fetched(folder: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    save(folder, nodes, *(onnx_tensor(name, DataType.FP32, ["n"]) for name in ("x", "y", "z")))
    outputs = run(folder, Signature((X,), (TensorSpec("z", DataType.FP32, (ANY,)),)), {"x": np.ones(3, np.float32)})
    assert list(outputs) == ["z"]


def test_a_failed_run_tells_onnx_runtimes_reason_and_nothing_else(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "far"], ["y"])],
        "graph",
        [onnx_tensor("x", DataType.FP32, ["n"])],
        [onnx_tensor("y", DataType.FP32, [1])],
        [numpy_helper.from_array(np.array([1000]), "far")],
    )
    save_graph(folder / "1", graph)
    declared = Signature((X,), (TensorSpec("y", DataType.FP32, (ANY,)),))
    with pytest.raises(ExecutionFailed, match=r"^onnxruntime: Non-zero status code returned while running Gather node"):
        run(folder, declared, {"x": np.ones(3, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_an_input_that_has_an_initializer_is_no_input(folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        "graph",
        [onnx_tensor("x", DataType.FP32, ["n"]), onnx_tensor("bias", DataType.FP32, [1])],
        [onnx_tensor("y", DataType.FP32, ["n"])],
        [numpy_helper.from_array(np.array([2], np.float32), "bias")],
    )
    save_graph(folder / "1", graph)
    partial = complete(folder)
    assert [spec.name for spec in partial.inputs] == ["x"]
    declared = Signature(partial.inputs, partial.outputs)
    assert run(folder, declared, {"x": np.zeros(2, np.float32)})["y"].tolist() == [2, 2]


def test_an_input_that_has_a_sparse_initializer_is_no_input(folder: Path) -> None:
    values = numpy_helper.from_array(np.array([2], np.float32), "bias")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0]), "bias_indices"), [3])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        "graph",
        [onnx_tensor("x", DataType.FP32, [3]), onnx_tensor("bias", DataType.FP32, [3])],
        [onnx_tensor("y", DataType.FP32, [3])],
        sparse_initializer=[sparse],
    )
    save_graph(folder / "1", graph)
    assert [spec.name for spec in complete(folder).inputs] == ["x"]


def test_bf16_and_other_tensors_share_a_graph(folder: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["b"], ["wide"], to=TensorProto.FLOAT),
    ]
    sides = (("x", DataType.FP32), ("b", DataType.BF16)), (("narrow", DataType.BF16), ("wide", DataType.FP32))
    save(folder, nodes, *(onnx_tensor(name, kind, ["n", 2]) for side in sides for name, kind in side), inputs=2)
    partial = complete(folder)
    for rows in (2, 0):
        inputs = {"x": np.full((rows, 2), 1.5, np.float32), "b": np.full((rows, 2), 2.5, DataType.BF16.numpy)}
        outputs = run(folder, Signature(partial.inputs, partial.outputs), inputs)
        np.testing.assert_array_equal(outputs["narrow"], inputs["x"].astype(DataType.BF16.numpy))
        np.testing.assert_array_equal(outputs["wide"], inputs["b"].astype(np.float32))


def test_weights_in_a_file_beside_the_model_are_found(folder: Path) -> None:
    save_linear_graph(folder / "1")
    model = onnx.load(folder / "1" / "model.onnx")
    onnx.save(model, folder / "1" / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    inputs = make_inputs(LINEAR, 2)
    np.testing.assert_allclose(run(folder, LINEAR, inputs)["y"], linear_reference(inputs)["y"], rtol=1e-6)
    (folder / "1" / "weights.bin").unlink()
    with pytest.raises(InvalidArtifact, match=r"model\.onnx: onnxruntime cannot load it: .*weights\.bin"):
        run(folder, LINEAR, inputs)


def test_an_input_that_is_no_tensor_is_refused(folder: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("xs", TensorProto.FLOAT, ["n"])
    node = helper.make_node("ConcatFromSequence", ["xs"], ["y"], axis=0)
    save(folder, [node], sequence, onnx_tensor("y", DataType.FP32, ["n"]))
    with pytest.raises(InvalidArtifact, match=r"model\.onnx: input 'xs' is a sequence; only tensors are served"):
        complete(folder)


def test_an_input_of_a_type_without_a_name_in_the_protocol_is_refused(folder: Path) -> None:
    float8 = helper.make_tensor_value_info("x", TensorProto.FLOAT8E4M3FN, ["n"])
    save(folder, [helper.make_node("Cast", ["x"], ["y"], to=1)], float8, onnx_tensor("y", DataType.FP32, ["n"]))
    with pytest.raises(InvalidArtifact, match=r"input 'x' has ONNX element type 17, which the protocol has no "):
        complete(folder)


def test_an_input_that_has_no_type_is_refused(folder: Path) -> None:
    nameless = onnx.ValueInfoProto(name="x")
    save(folder, [helper.make_node("Neg", ["x"], ["y"])], nameless, onnx_tensor("y", DataType.FP32, ["n"]))
    with pytest.raises(InvalidArtifact, match=r"model\.onnx: input 'x' has no type"):
        complete(folder)


@pytest.mark.parametrize("damage", [b"\x08\x01", b"\x0b\x0b"], ids=["number for a message", "no message"])
def test_a_graph_with_damage_inside_is_refused_by_its_path(folder: Path, damage: bytes) -> None:
    save_linear_graph(folder / "1")
    path = folder / "1" / "model.onnx"
    content = path.read_bytes()
    # The type of input "x", which follows its name.
    at = content.index(b"\x0a\x01x\x12") + 5
    path.write_bytes(content[:at] + damage + content[at + 2 :])
    with pytest.raises(InvalidArtifact, match=r"model\.onnx"):
        complete(folder)


def test_an_output_that_is_no_tensor_is_left_out_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("SequenceConstruct", ["x"], ["xs"])]
    sequence = helper.make_tensor_sequence_value_info("xs", TensorProto.FLOAT, ["n"])
    save(folder, nodes, onnx_tensor("x", DataType.FP32, ["n"]), sequence, onnx_tensor("y", DataType.FP32, ["n"]))
    with caplog.at_level(logging.WARNING):
        partial = complete(folder)
    assert [spec.name for spec in partial.outputs] == ["y"]
    assert "output 'xs' is not served: it is a sequence; only tensors are served" in caplog.text
    inputs = {"x": np.ones(2, np.float32)}
    assert run(folder, Signature(partial.inputs, partial.outputs), inputs)["y"].tolist() == [-1, -1]


def test_a_graph_that_onnx_runtime_refuses_is_refused_with_its_reason(folder: Path) -> None:
    values = [onnx_tensor("x", DataType.FP32, ["n"]), onnx_tensor("y", DataType.FP32, ["n"])]
    save(folder, [helper.make_node("NoSuchOperator", ["x"], ["y"])], *values)
    declared = Signature((X,), (TensorSpec("y", DataType.FP32, (ANY,)),))
    with pytest.raises(InvalidArtifact, match=r"model\.onnx: onnxruntime cannot load it: .*NoSuchOperator"):
        run(folder, declared, {})


def test_strings_that_are_no_text_are_the_mistake_of_who_sent_them(folder: Path) -> None:
    values = [onnx_tensor("x", DataType.BYTES, ["n"]), onnx_tensor("y", DataType.BYTES, ["n"])]
    save(folder, [helper.make_node("Identity", ["x"], ["y"])], *values)
    partial = complete(folder)
    with pytest.raises(InvalidRequest, match=r"input 'x': b'\\xff' is not UTF-8, as ONNX strings are"):
        run(folder, Signature(partial.inputs, partial.outputs), {"x": np.array([b"a", b"\xff"], np.object_)})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"intra_op_threads": "0"}, "intra_op_threads: 0: must be at least 1"),
        ({"intra_op_threads": "two"}, "intra_op_threads: 'two': must be an integer"),
        ({"graph_optimization_level": "most"}, "graph_optimization_level: 'most': must be one of disabled, basic,"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_parameter_that_cannot_be_is_refused(folder: Path, parameters: dict[str, str], message: str) -> None:
    save_linear_graph(folder / "1")
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        OnnxRuntimeBackend().complete(make_source(folder, parameters=parameters))


@pytest.mark.parametrize("level", ["disabled", "basic", "extended", "all"])
def test_it_answers_alike_at_every_level_of_optimization(folder: Path, level: str) -> None:
    save_linear_graph(folder / "1")
    inputs = make_inputs(LINEAR, 2)
    outputs = run(folder, LINEAR, inputs, graph_optimization_level=level, intra_op_threads="2")
    np.testing.assert_allclose(outputs["y"], linear_reference(inputs)["y"], rtol=1e-6)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this build has CUDA")
def test_a_build_without_cuda_does_not_fall_back_to_the_cpu(folder: Path) -> None:
    save_linear_graph(folder / "1")
    with pytest.raises(BackendMissing, match=r"onnxruntime is built for the CPU only: .*preheat\[onnxruntime-gpu\]"):
        OnnxRuntimeBackend().load(make_source(folder, device="cuda:0"), LINEAR)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this build has CUDA")
def test_a_provider_that_does_not_start_is_not_replaced_by_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself only warns and runs on the CPU; here of CUDA in a build that merely claims to have it."""
    save_linear_graph(folder / "1")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="Specified provider 'CUDAExecutionProvider' is not in available"),
        pytest.raises(BackendMissing, match="m asks for cuda:0, but onnxruntime could not start its CUDAExecution"),
    ):
        OnnxRuntimeBackend().load(make_source(folder, device="cuda:0"), LINEAR)


def test_onnx_runtime_leaves_no_trace_of_telemetry(folder: Path, tmp_path: Path) -> None:
    """Its Linux builds write a device's number and a queue of events to the home folder before they report them."""
    save_linear_graph(folder / "1")
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import sys, preheat_backends.onnxruntime, onnxruntime;"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(folder / "1" / "model.onnx")], env=environment, check=True)
    assert list(home.rglob("*")) == []
