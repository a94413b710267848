"""The OpenVINO backend's own promises: what it reads off its formats, in what it computes, what a failure leaves."""

import dataclasses
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.backends.cases import (
    LINEAR,
    PAIR,
    linear_reference,
    make_inputs,
    make_source,
    onnx_tensor,
    open_session,
    opened,
    pair_reference,
    save_graph,
    save_ir,
    save_linear_graph,
    save_linear_ir,
    save_pair_graph,
)

from preheat.backend import Dimension, Model, PartialConfig, Signature, TensorSpec
from preheat.compilations import Compilation, CompilationKind
from preheat.errors import ExecutionFailed, InvalidArtifact, InvalidConfig, InvalidRequest, ServingError
from preheat.tensors import DataType, Tensors
from preheat_backends.hardware import find_device
from preheat_backends.openvino import OpenVinoBackend
from preheat_backends.openvino.library import CPU, get_core, ov

CAPABILITIES = get_core().get_property(CPU, "OPTIMIZATION_CAPABILITIES")
ANY = Dimension("n")
X, Y = TensorSpec("x", DataType.FP32, (ANY,)), TensorSpec("y", DataType.FP32, (ANY,))
# As the artifact has it whose axes nothing ties together.
_SIDES = (Dimension(minimum=1), Dimension(minimum=1))
LOOSE = Signature(
    (TensorSpec("values", DataType.FP32, _SIDES), TensorSpec("mask", DataType.INT64, _SIDES)),
    (TensorSpec("masked", DataType.FP32, _SIDES),),
)


def save(folder: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], *constants: Any) -> None:
    save_graph(folder / "1", helper.make_graph(nodes, "graph", inputs, outputs, list(constants)))


def save_model(folder: Path, model: Any) -> None:
    """Save a model that was made with OpenVINO itself."""
    ov.save_model(model, folder / "1" / "model.xml", compress_to_fp16=False)


def complete(folder: Path) -> PartialConfig:
    return OpenVinoBackend().complete(make_source(folder))


def load(folder: Path, signature: Signature, **settings: Any) -> Model:
    return OpenVinoBackend().load(make_source(folder, **settings), signature)


def run(folder: Path, signature: Signature, inputs: Tensors, **parameters: str) -> Tensors:
    with opened(load(folder, signature, parameters=parameters)) as session:
        return {name: array.copy() for name, array in session.infer(inputs).items()}


# --- What the artifact says --------------------------------------------------------------------------------------


def test_an_ir_tells_names_types_and_bounds(folder: Path) -> None:
    save_linear_graph(folder / "1")
    model = get_core().read_model(folder / "1" / "model.onnx")
    model.reshape({"x": ov.PartialShape([ov.Dimension(1, 8), 4])})
    save_model(folder, model)
    partial = complete(folder)
    batch = Dimension(minimum=1, maximum=8)
    assert partial.inputs == (TensorSpec("x", DataType.FP32, (batch, Dimension.fixed(4))),)
    assert partial.outputs == (TensorSpec("y", DataType.FP32, (batch, Dimension.fixed(3))),)


def test_an_ir_leaves_axes_open_that_have_no_bounds(folder: Path) -> None:
    save_pair_graph(folder / "1")
    save_ir(folder / "1")
    partial = complete(folder)
    assert [spec.shape for spec in partial.inputs] == [(Dimension(minimum=1), Dimension(minimum=1))] * 2
    assert partial.outputs[0].shape == (Dimension(), Dimension())


def test_a_tensor_without_a_name_has_that_of_its_place(folder: Path) -> None:
    """As in files of old; OpenVINO writes names of its own making by now."""
    save_linear_ir(folder / "1")
    path = folder / "1" / "model.xml"
    path.write_text(re.sub(r' (output_)?names="[^"]*"', "", path.read_text()))
    partial = complete(folder)
    assert [spec.name for spec in (*partial.inputs, *partial.outputs)] == ["INPUT__0", "OUTPUT__0"]
    inputs = make_inputs(LINEAR, 2)
    declared = dataclasses.replace(LINEAR, inputs=(dataclasses.replace(LINEAR.inputs[0], name="INPUT__0"),))
    answer = run(folder, declared, {"INPUT__0": inputs["x"]})["y"]
    np.testing.assert_allclose(answer, linear_reference(inputs)["y"], rtol=1e-5)


def test_any_of_a_tensors_names_will_do(folder: Path) -> None:
    parameter = ov.opset13.parameter([-1], np.float32)
    parameter.output(0).set_names({"x", "x:0"})
    result = ov.opset13.result(ov.opset13.negative(parameter))
    result.output(0).set_names({"y", "y:0"})
    save_model(folder, ov.Model([result], [parameter], "m"))
    for name in ("x", "x:0"):
        declared = Signature((dataclasses.replace(X, name=name),), (dataclasses.replace(Y, name="y:0"),))
        assert run(folder, declared, {name: np.ones(2, np.float32)})["y:0"].tolist() == [-1, -1]


def test_the_ir_is_taken_where_both_formats_are(folder: Path) -> None:
    save_linear_ir(folder / "1")
    (folder / "1" / "model.onnx").write_bytes(b"soon")
    inputs = make_inputs(LINEAR, 2)
    np.testing.assert_allclose(run(folder, LINEAR, inputs)["y"], linear_reference(inputs)["y"], rtol=1e-5)


def test_weights_in_a_file_beside_an_onnx_model_are_found(folder: Path) -> None:
    save_linear_graph(folder / "1")
    path = folder / "1" / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    inputs = make_inputs(LINEAR, 2)
    np.testing.assert_allclose(run(folder, LINEAR, inputs)["y"], linear_reference(inputs)["y"], rtol=1e-5)
    (folder / "1" / "weights.bin").unlink()
    with pytest.raises(InvalidArtifact, match=r"model\.onnx: openvino cannot load it: .*weights\.bin"):
        run(folder, LINEAR, inputs)


# --- In what it computes -----------------------------------------------------------------------------------------


def save_product(folder: Path) -> np.ndarray[Any, Any]:
    """Save a product with a large matrix, where every precision shows, and return the matrix."""
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    tensors = [onnx_tensor(name, DataType.FP32, ["batch", 256]) for name in ("x", "y")]
    save(folder, [node], tensors[:1], tensors[1:], numpy_helper.from_array(weight, "weight"))
    return weight


WIDE = Signature(
    (TensorSpec("x", DataType.FP32, (Dimension.fixed(256),)),),
    (TensorSpec("y", DataType.FP32, (Dimension.fixed(256),)),),
    8,
)


def error_of(folder: Path, **parameters: str) -> float:
    weight = save_product(folder)
    x = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    expected = x.astype(np.float64) @ weight.astype(np.float64)
    answer = run(folder, WIDE, {"x": x}, **parameters)["y"]
    return float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))


def test_it_computes_in_fp32_unless_it_is_told_otherwise(folder: Path) -> None:
    """OpenVINO itself takes bf16 wherever the CPU has it, and is a thousand times further off then."""
    assert error_of(folder) < 1e-6


@pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this CPU has no kernels for bf16")
def test_it_computes_in_bf16_where_that_is_asked_for(folder: Path) -> None:
    assert 1e-4 < error_of(folder, inference_precision="bf16") < 1e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_without_kernels_is_refused_by_name(folder: Path, precision: str) -> None:
    """Where OpenVINO itself would compute in fp32 and not say so."""
    if precision.upper() in CAPABILITIES:
        pytest.skip(f"this CPU has kernels for {precision}")
    save_linear_graph(folder / "1")
    message = rf"parameters: inference_precision: '{precision}': OpenVINO has no kernels of it .*; it has fp32"
    with pytest.raises(InvalidConfig, match=message):
        OpenVinoBackend().complete(make_source(folder, parameters={"inference_precision": precision}))


def test_a_quantized_graph_runs_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights and activations in 8 bits, as ONNX writes them: QuantizeLinear and DequantizeLinear."""
    random = np.random.default_rng(0)
    weight = random.integers(-63, 64, (64, 32)).astype(np.int8)  # of 7 bits: see below
    constants = {
        "scale": np.float32(0.05),
        "zero": np.int8(0),
        "weight": weight,
        "weight_scale": np.float32(0.01),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["xq", "w"], ["y"]),
    ]
    inputs, outputs = onnx_tensor("x", DataType.FP32, ["n", 64]), onnx_tensor("y", DataType.FP32, ["n", 32])
    save(folder, nodes, [inputs], [outputs], *(numpy_helper.from_array(np.array(v), k) for k, v in constants.items()))
    x = random.standard_normal((4, 64)).astype(np.float32)
    signature = Signature(
        (TensorSpec("x", DataType.FP32, (ANY, Dimension.fixed(64))),),
        (TensorSpec("y", DataType.FP32, (ANY, Dimension.fixed(32))),),
    )
    rounded = np.clip(np.rint(x / np.float32(0.05)), -128, 127) * np.float32(0.05)
    with caplog.at_level(logging.WARNING):
        answer = run(folder, signature, {"x": x})["y"]
    np.testing.assert_allclose(answer, rounded @ (weight * np.float32(0.01)), atol=1e-4)
    # With weights of 8 bits a tenth of the numbers were wrong on a CPU with AVX2 only, which adds them in 16 bits.
    instructions = find_device("cpu").instructions
    lacks = instructions.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})
    assert ("m: its graph is quantized to 8 bits, and cpu (" in caplog.text) is lacks


def save_sum(folder: Path, datatype: DataType) -> Signature:
    tensors = [onnx_tensor(name, datatype, ["n"]) for name in ("x", "y")]
    one = numpy_helper.from_array(np.array([1], datatype.numpy), "one")
    save(folder, [helper.make_node("Add", ["x", "one"], ["y"])], tensors[:1], tensors[1:], one)
    return Signature((dataclasses.replace(X, datatype=datatype),), (dataclasses.replace(Y, datatype=datatype),))


def test_integers_that_openvino_would_cut_off_are_the_mistake_of_who_sent_them(folder: Path) -> None:
    declared = save_sum(folder, DataType.INT64)
    with opened(load(folder, declared)) as session:
        assert session.infer({"x": np.array([2**31 - 2, -(2**31)])})["y"].tolist() == [2**31 - 1, 1 - 2**31]
        for beyond in (2**31, -(2**31) - 1):
            with pytest.raises(InvalidRequest, match=r"input 'x': has values beyond 32 bits \(-2147483648 to 214748"):
                session.infer({"x": np.array([1, beyond])})


def test_fp64_is_said_to_be_computed_in_fp32(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    declared = save_sum(folder, DataType.FP64)
    with caplog.at_level(logging.WARNING), opened(load(folder, declared)) as session:
        assert session.infer({"x": np.array([0.5])})["y"].tolist() == [1.5]
    assert "m: OpenVINO computes FP64 in FP32 on a CPU: 'x', 'y'" in caplog.text


# --- Shapes, instances, failures ---------------------------------------------------------------------------------


def test_each_new_shape_is_stated_once_by_each_session(folder: Path, stated: list[Compilation]) -> None:
    save_pair_graph(folder / "1")
    model = load(folder, PAIR, instances=2)
    assert model.specializes_on_shape
    sessions = [open_session(model, ordinal) for ordinal in range(2)]
    for session in sessions:
        for rows, sequence in ((2, 5), (1, 5), (2, 5)):
            session.infer(make_inputs(PAIR, rows, sequence=sequence))
        assert [(each.kind, each.what) for each in stated] == [
            (CompilationKind.GRAPH, "values[2,5], mask[2,5]"),
            (CompilationKind.GRAPH, "values[1,5], mask[1,5]"),
        ]
        stated.clear()
        session.close()
    model.close()


def test_a_model_of_one_shape_does_not_specialize(folder: Path) -> None:
    tensors = [onnx_tensor(name, DataType.FP32, [3]) for name in ("x", "y")]
    save(folder, [helper.make_node("Neg", ["x"], ["y"])], tensors[:1], tensors[1:])
    declared = Signature(
        (TensorSpec("x", DataType.FP32, (Dimension.fixed(3),)),),
        (TensorSpec("y", DataType.FP32, (Dimension.fixed(3),)),),
    )
    model = load(folder, declared)
    assert not model.specializes_on_shape
    model.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failed_run_leaves_nothing_behind(
    folder: Path, threads: int, stated: list[Compilation], caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO 2026.4 answers with the last batch's outputs, or fails the next batch of the same shape too."""
    save_pair_graph(folder / "1")
    good = make_inputs(PAIR, 2, sequence=4)
    bad = {**good, "mask": np.ones((2, 3), np.int64)}
    with opened(load(folder, LOOSE, threads=threads), threads=threads) as session:
        for _ in range(2):
            for _ in range(3):
                np.testing.assert_allclose(session.infer(good)["masked"], pair_reference(good)["masked"], rtol=1e-6)
            with pytest.raises(
                ExecutionFailed, match=r"^openvino: \[CPU\] Multiply node with name 'masked' .*mismatch$"
            ):
                session.infer(bad)
        session.infer(good)
    assert [each.kind for each in stated] == [
        CompilationKind.GRAPH,
        *[CompilationKind.SESSION, CompilationKind.GRAPH] * 2,
    ]
    assert caplog.text.count("compiled anew after a run that failed") == 2


def test_a_batch_that_never_ran_costs_no_compilation(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_linear_graph(folder / "1")
    with opened(load(folder, LINEAR)) as session:
        with pytest.raises(ExecutionFailed, match=r"^openvino: Can't set the input tensor .*shape=\[\?,4\]"):
            session.infer({"x": np.ones((2, 8), np.float32)})
        session.infer(make_inputs(LINEAR, 2))
    assert "compiled anew" not in caplog.text


def test_instances_fail_apart(folder: Path) -> None:
    save_pair_graph(folder / "1")
    model = load(folder, LOOSE, instances=2)
    good = make_inputs(PAIR, 2)
    bad = {**good, "mask": np.ones((2, 3), np.int64)}

    def serve(ordinal: int) -> int:
        session, failures = open_session(model, ordinal), 0
        for call in range(20):
            try:
                answer = session.infer(bad if ordinal and call % 5 == 4 else good)
                np.testing.assert_allclose(answer["masked"], pair_reference(good)["masked"], rtol=1e-6)
            except ServingError:
                failures += 1
        session.close()
        return failures

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(serve, range(2))) == [0, 4]
    model.close()


def test_other_threads_run_while_it_computes(folder: Path) -> None:
    """Its interpreter's lock is free during a run: two runs of some milliseconds are in their waits at once."""
    save_product(folder)
    waiting: list[int] = []
    most = 0
    begun = threading.Barrier(2, timeout=60)

    class Counted:
        def __init__(self, request: Any) -> None:
            self._request = request

        def __getattr__(self, name: str) -> Any:
            return getattr(self._request, name)

        def wait(self) -> None:
            nonlocal most
            waiting.append(1)
            most = max(most, len(waiting))
            self._request.wait()
            waiting.pop()

    model = load(folder, WIDE, instances=2)

    def serve(ordinal: int) -> None:
        session: Any = open_session(model, ordinal)
        session._request = Counted(session._request)
        begun.wait()
        # On a fast machine two short runs may often miss each other.
        for _ in range(3000):
            session.infer({"x": np.ones((512, 256), np.float32)})
            if most == 2:
                break
        session.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(serve, range(2)))
    model.close()
    assert most == 2


def test_a_graph_that_works_in_place_leaves_its_inputs_alone(folder: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        helper.make_node("Relu", ["r"], ["a"]),
        helper.make_node("Add", ["a", "one"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    tensors = [onnx_tensor(name, DataType.FP32, ["n"]) for name in ("x", "y")]
    constants = {"flat": np.array([-1]), "one": np.array([1], np.float32)}
    save(folder, nodes, tensors[:1], tensors[1:], *(numpy_helper.from_array(v, k) for k, v in constants.items()))
    x = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    before = x.copy()
    x.setflags(write=False)
    answer = run(folder, Signature((X,), (Y,)), {"x": x})["y"]
    raised = np.exp(np.maximum(before, 0) + 1)
    np.testing.assert_allclose(answer, raised / raised.sum(), rtol=1e-4)
    np.testing.assert_array_equal(x, before)


def test_weights_that_are_cut_short_after_the_load_harm_nothing(folder: Path) -> None:
    """OpenVINO by itself maps an IR's weights: the process would die of the page that is not there any more."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((1024, 256)).astype(np.float32)
    node = helper.make_node("Gather", ["weight", "x"], ["y"])
    x, y = onnx_tensor("x", DataType.INT64, ["n"]), onnx_tensor("y", DataType.FP32, ["n", 256])
    save(folder, [node], [x], [y], numpy_helper.from_array(weight, "weight"))
    save_ir(folder / "1")
    declared = Signature(
        (TensorSpec("x", DataType.INT64, (ANY,)),), (TensorSpec("y", DataType.FP32, (ANY, Dimension.fixed(256))),)
    )
    model = load(folder, declared, instances=2)
    _cut(folder / "1" / "model.bin", 0)
    for ordinal in range(2):
        session = open_session(model, ordinal)
        np.testing.assert_array_equal(session.infer({"x": np.array([3, 1000])})["y"], weight[[3, 1000]])
        session.close()
    model.close()


# --- Refusals ----------------------------------------------------------------------------------------------------


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.xml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def _grow(folder: Path) -> None:
    with (folder / "model.bin").open("ab") as file:
        file.write(bytes(64))


def _swap_formats(folder: Path) -> None:
    save_linear_graph(folder)
    (folder / "model.onnx").replace(folder / "model.xml")


@pytest.mark.parametrize(
    ("damage", "fragments"),
    [
        (lambda folder: (folder / "model.bin").unlink(), ("model.xml", "weights are missing", "model.bin")),
        (lambda folder: _cut(folder / "model.bin", 0.5), ("model.bin has 32 bytes", "refers to 64", "cut short")),
        (lambda folder: (folder / "model.bin").write_bytes(b""), ("model.bin has 0 bytes", "another model's")),
        (_grow, ("model.bin has 128 bytes", "model.xml refers to 64 bytes", "another model's")),
        (lambda folder: _cut(folder / "model.xml", 0.7), ("model.xml", "does not end with </net>", "cut short")),
        (lambda folder: (folder / "model.xml").write_text("<net></net"), ("model.xml", "</net>", "cut short")),
        (_edit("<layers>", "<layer>"), ("model.xml: openvino cannot load it:", "mismatch")),
        (_edit('type="MatMul"', 'type="MatMull"'), ("model.xml: openvino cannot load it:", "MatMull")),
        (_edit('version="11"', 'version="99"'), ("model.xml: its IR version is 99", "openvino reads 10 and 11")),
        (_edit('shape="3, 4"', 'shape="3, 5"'), ("model.xml: openvino cannot load it:",)),
        (_edit("<net", "<model"), ("model.xml is a text file", "'openvino' takes an OpenVINO IR model (.xml with")),
        (_swap_formats, ("model.xml is an ONNX model", "'openvino' takes")),
    ],
    ids=[
        "no weights", "cut weights", "empty weights", "weights of another", "cut", "cut in the last tag", "unbalanced",
        "unknown operator", "version", "inconsistent", "another root", "onnx",
    ],
)  # fmt: skip
def test_a_damaged_ir_is_refused_saying_what_is_wrong(
    folder: Path, damage: Callable[[Path], None], fragments: tuple[str, ...]
) -> None:
    save_linear_ir(folder / "1")
    damage(folder / "1")
    with pytest.raises(InvalidArtifact) as raised:
        complete(folder)
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("node", "fragments"),
    [
        (helper.make_node("NoSuchOperator", ["x"], ["y"]), ("model.onnx: openvino cannot load it:", "NoSuchOperator")),
        (
            helper.make_node("Neg", ["x"], ["y"], domain="acme"),
            ("model.onnx: openvino cannot load it:", "acme.Neg"),
        ),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0]), ("model.onnx: openvino cannot load it:",)),
    ],
    ids=["unknown operator", "unknown domain", "wrong rank"],
)
def test_a_graph_that_openvino_refuses_is_refused_with_its_reason(
    folder: Path, node: onnx.NodeProto, fragments: tuple[str, ...]
) -> None:
    tensors = [onnx_tensor(name, DataType.FP32, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "1" / "model.onnx")
    with pytest.raises(InvalidArtifact) as raised:
        load(folder, Signature((X,), (Y,)))
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


def save_lookup(folder: Path, *, from_input: bool) -> Signature:
    """A table and GatherND, with indices that are an input, or the places of an input's largest numbers."""
    table = numpy_helper.from_array(np.arange(32, dtype=np.float32).reshape(8, 4), "table")
    one = numpy_helper.from_array(np.array([1]), "one")
    lookup = helper.make_node("GatherND", ["table", "x" if from_input else "places"], ["y"])
    nodes = [] if from_input else [helper.make_node("TopK", ["x", "one"], ["values", "places"], axis=1)]
    datatype = DataType.INT64 if from_input else DataType.FP32
    width = 1 if from_input else 8
    x, y = onnx_tensor("x", datatype, ["n", width]), onnx_tensor("y", DataType.FP32, ["n", 4])
    save(folder, [*nodes, lookup], [x], [y], table, *([] if from_input else [one]))
    return Signature(
        (TensorSpec("x", datatype, (ANY, Dimension.fixed(width))),),
        (TensorSpec("y", DataType.FP32, (ANY, Dimension.fixed(4))),),
    )


def test_indices_that_would_crash_openvino_are_refused_at_load(folder: Path) -> None:
    message = r"model\.onnx: GatherND '\w+' takes indices that depend on an input, .* the backend 'onnxruntime' does"
    with pytest.raises(InvalidArtifact, match=message):
        load(folder, save_lookup(folder, from_input=True))
    x = np.eye(8, dtype=np.float32)[[2, 7]]
    declared = save_lookup(folder, from_input=False)
    assert run(folder, declared, {"x": x})["y"].tolist() == [[8, 9, 10, 11], [28, 29, 30, 31]]


def test_an_index_outside_a_table_finds_zeros(folder: Path) -> None:
    """Gather is OpenVINO's own way to say nothing; ONNX Runtime fails the request."""
    table = numpy_helper.from_array(np.ones((8, 4), np.float32), "table")
    x, y = onnx_tensor("x", DataType.INT64, ["n"]), onnx_tensor("y", DataType.FP32, ["n", 4])
    save(folder, [helper.make_node("Gather", ["table", "x"], ["y"])], [x], [y], table)
    declared = Signature(
        (TensorSpec("x", DataType.INT64, (ANY,)),), (TensorSpec("y", DataType.FP32, (ANY, Dimension.fixed(4))),)
    )
    answer = run(folder, declared, {"x": np.array([7, 8, -9, 2**31 - 1])})["y"]
    assert answer[:, 0].tolist() == [1, 0, 0, 0]


def test_strings_are_refused_naming_who_serves_them(folder: Path) -> None:
    tensors = [onnx_tensor(name, DataType.BYTES, ["n"]) for name in ("x", "y")]
    save(folder, [helper.make_node("Identity", ["x"], ["y"])], tensors[:1], tensors[1:])
    with pytest.raises(InvalidConfig, match=r"tensor 'x': BYTES: the backend 'openvino' serves no strings; .*onnxrunt"):
        complete(folder)


def test_a_type_without_a_name_in_the_protocol_is_refused(folder: Path) -> None:
    parameter = ov.opset13.parameter([4], ov.Type.u4)
    parameter.output(0).set_names({"x"})
    save_model(folder, ov.Model([ov.opset13.result(ov.opset13.convert(parameter, "f32"))], [parameter], "m"))
    with pytest.raises(
        InvalidArtifact, match=r"model\.xml: input 'x' is of OpenVINO's type 'u4'; .* serves BOOL, UINT8"
    ):
        complete(folder)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"inference_precision": "int8"}, r"inference_precision: 'int8': must be one of fp32, bf16, fp16"),
        ({"num_streams": "2"}, r"num_streams: unknown parameter; allowed: inference_precision"),
        ({"performance_hint": "throughput"}, r"performance_hint: unknown parameter; allowed: inference_precision"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_parameter_that_cannot_be_is_refused(folder: Path, parameters: dict[str, str], message: str) -> None:
    save_linear_graph(folder / "1")
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        OpenVinoBackend().complete(make_source(folder, parameters=parameters))


def test_a_sparse_or_fed_initializer_is_no_input(folder: Path) -> None:
    """OpenVINO's ports are those that the outline of the file shows."""
    nodes = [helper.make_node("Add", ["x", "bias"], ["y"])]
    tensors = [onnx_tensor("x", DataType.FP32, ["n"]), onnx_tensor("bias", DataType.FP32, [1])]
    bias = numpy_helper.from_array(np.array([2], np.float32), "bias")
    save(folder, nodes, tensors, [onnx_tensor("y", DataType.FP32, ["n"])], bias)
    assert run(folder, Signature((X,), (Y,)), {"x": np.zeros(2, np.float32)})["y"].tolist() == [2, 2]


def test_importing_it_tells_nobody(folder: Path, tmp_path: Path) -> None:
    """``import openvino`` by itself writes a number for the user to the home folder, and sends it with an event."""
    save_linear_graph(folder / "1")
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import sys, preheat_backends.openvino as backend, openvino;"
        "openvino.Core().compile_model(sys.argv[1], 'CPU');"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'openvino_telemetry']"
    )
    # Where it takes its environment for a CI job it sends nothing anyhow.
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(folder / "1" / "model.onnx")], env=environment, check=True)
    assert list(home.rglob("*")) == []


def test_a_model_that_keeps_a_state_is_refused(folder: Path) -> None:
    operators = ov.opset13
    x = operators.parameter([2], np.float32, name="x")
    x.output(0).set_names({"x"})
    told = ov.op.util.VariableInfo()
    told.data_shape, told.data_type, told.variable_id = ov.PartialShape([2]), ov.Type.f32, "sum"
    variable = ov.op.util.Variable(told)
    total = operators.add(operators.read_value(operators.constant(np.zeros(2, np.float32)), variable), x)
    total.output(0).set_names({"y"})
    result = operators.result(total)
    save_model(folder, ov.Model([result], [operators.assign(total, variable)], [x], "counter"))
    two = Dimension.fixed(2)
    signature = Signature((TensorSpec("x", DataType.FP32, (two,)),), (TensorSpec("y", DataType.FP32, (two,)),))
    with pytest.raises(InvalidArtifact, match="keeps a state between its runs"):
        load(folder, signature)


def save_dynamic(folder: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    save(folder, nodes, [onnx_tensor("x", DataType.FP32, ["n", 4])], [onnx_tensor("y", DataType.FP32, ["n", 4])])


def test_rows_that_are_quantized_together_depend_on_each_other(folder: Path) -> None:
    save_dynamic(folder)
    assert not complete(folder).row_independent
    model = get_core().read_model(folder / "1" / "model.onnx")
    (folder / "1" / "model.onnx").unlink()
    save_model(folder, model)
    assert not complete(folder).row_independent


def test_rows_of_other_models_do_not(folder: Path) -> None:
    save_linear_ir(folder / "1")
    assert complete(folder).row_independent


def test_a_shared_name_hides_no_index_from_the_check(folder: Path) -> None:
    operators = ov.opset13
    n = operators.parameter([1, 1], np.int32, name="n")
    n.output(0).set_names({"n"})
    wide = operators.convert(n, "i64")
    wide.set_friendly_name("n")
    data = operators.constant(np.arange(4, dtype=np.float32))
    found = operators.gather_nd(data, wide)
    found.output(0).set_names({"y"})
    save_model(folder, ov.Model([operators.result(found)], [n], "lookup"))
    one = Dimension.fixed(1)
    signature = Signature((TensorSpec("n", DataType.INT32, (one, one)),), (TensorSpec("y", DataType.FP32, (one,)),))
    with pytest.raises(InvalidArtifact, match="GatherND"):
        load(folder, signature)
