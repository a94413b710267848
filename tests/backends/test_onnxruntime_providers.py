"""The ONNX Runtime backend's execution providers: what is asked for is what runs, or the load says why not.

No test here has a GPU. Where a provider has to take its place, this build's Azure provider does, which takes no nodes.
"""

import ctypes
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime as ort
import pytest
from onnx import helper
from tests.backends.cases import (
    LINEAR,
    PAIR,
    linear_reference,
    make_inputs,
    make_source,
    onnx_tensor,
    opened,
    save_graph,
    save_linear_graph,
    save_pair_graph,
)

from preheat.backend import Buckets, Dimension, Model, ModelSource, Outside, Signature, TensorSpec
from preheat.errors import BackendMissing, InvalidConfig
from preheat.tensors import DataType
from preheat_backends import hardware
from preheat_backends.onnxruntime import OnnxRuntimeBackend, backend, placement, providers, tensorrt
from preheat_backends.onnxruntime.options import ExecutionProvider, Parameters, parse_options

CPU_BUILD = "CUDAExecutionProvider" not in ort.get_available_providers()
only_on_a_cpu_build = pytest.mark.skipif(not CPU_BUILD, reason="this build has CUDA")
TENSORRT = {"execution_provider": "tensorrt"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with the linear graph as version 1."""
    (tmp_path / "1").mkdir()
    save_linear_graph(tmp_path / "1")
    return tmp_path


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that claims to have CUDA and TensorRT."""
    claimed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", *ort.get_available_providers()]
    monkeypatch.setattr(ort, "get_available_providers", lambda: claimed)


@pytest.fixture
def idle_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of CUDA, a provider that starts and takes no nodes."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this build has no provider that takes no nodes")
    monkeypatch.setitem(providers.NAMES, ExecutionProvider.CUDA, "AzureExecutionProvider")


def load(folder: Path, parameters: Mapping[str, str], signature: Signature = LINEAR, *, device: str = "cpu") -> Model:
    source = make_source(folder, parameters=parameters, device=device)
    OnnxRuntimeBackend().complete(source)
    return OnnxRuntimeBackend().load(source, signature)


# --- What goes together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"execution_provider": "rocm"}, "execution_provider: 'rocm': must be one of cpu, cuda, tensorrt"),
        ({"tensorrt_fp16": "true"}, "tensorrt_fp16: 'true': goes with execution_provider: tensorrt; here it is cpu"),
        ({"tensorrt_int8": "false"}, "tensorrt_int8: 'false': goes with execution_provider: tensorrt; here it is cpu"),
        ({"tensorrt_workspace_mib": "0"}, "tensorrt_workspace_mib: 0: must be at least 1"),
        ({**TENSORRT, "tensorrt_optimization_level": "6"}, "tensorrt_optimization_level: 6: must be from 0 to 5"),
        ({**TENSORRT, "tensorrt_fp16": "1", "tensorrt_bf16": "1"}, "tensorrt_bf16: 'true': cannot be beside tensorrt_"),
        ({**TENSORRT, "saturating_int8": "true"}, "saturating_int8: 'true': goes with execution_provider: cpu; here"),
        ({**TENSORRT, "tf32": "true"}, "tf32: 'true': goes with execution_provider: cuda; here it is tensorrt"),
        ({"tf32": "true"}, "tf32: 'true': goes with execution_provider: cuda; here it is cpu"),
        ({"allow_cpu_nodes": "true"}, "allow_cpu_nodes: 'true': goes with execution_provider: cuda or tensorrt"),
        ({"device_memory_limit_mib": "64"}, "device_memory_limit_mib: '64': goes with execution_provider: cuda or"),
        ({"device_memory_limit_mib": "-1"}, "device_memory_limit_mib: -1: must be at least 1"),
        ({"device_memory_limit_mib": "much"}, "device_memory_limit_mib: 'much': must be an integer"),
        ({"allow_spinning": "sometimes"}, "allow_spinning: 'sometimes': must be true or false"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_parameters_that_mean_nothing_are_refused_by_name(
    folder: Path, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        load(folder, parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {"execution_provider": "cpu"},
        {"allow_spinning": "true", "intra_op_threads": "2"},
        {"cpu_mem_arena": "false"},
        {"saturating_int8": "true"},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_it_answers_alike_with_every_parameter_of_the_cpu(folder: Path, parameters: dict[str, str]) -> None:
    inputs = make_inputs(LINEAR, 3)
    with opened(load(folder, parameters)) as session:
        answer = session.infer(inputs)["y"]
    assert abs(answer - linear_reference(inputs)["y"]).max() < 1e-5


# --- Providers and devices that are not there -------------------------------------------------------------------


@only_on_a_cpu_build
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_provider_that_this_build_lacks_is_refused_by_name(folder: Path, provider: str, device: str) -> None:
    with pytest.raises(
        BackendMissing,
        match=rf"execution_provider: '{provider}': m asks for it on {device}, but this onnxruntime is built for the CPU"
        r" only: .*preheat\[onnxruntime-gpu\]",
    ):
        load(folder, {"execution_provider": provider}, device=device)


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_of_gpus_is_refused_on_the_cpu(folder: Path, provider: str) -> None:
    with pytest.raises(
        InvalidConfig, match=rf"'{provider}': the instance is on the CPU: set instance_group .*KIND_GPU"
    ):
        load(folder, {"execution_provider": provider})


def test_the_provider_of_the_cpu_is_refused_on_a_gpu(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"'cpu': the instance is on cuda:0: set instance_group .*KIND_CPU"):
        load(folder, {"execution_provider": "cpu"}, device="cuda:0")


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.skipif(bool(tensorrt.library_version()), reason="TensorRT 10 is installed")
def test_tensorrt_of_another_version_than_10_is_refused_by_its_library(folder: Path) -> None:
    message = (
        r"execution_provider: 'tensorrt': libnvinfer\.so\.10: cannot open .* links TensorRT 10, and takes no other"
    )
    with pytest.raises(BackendMissing, match=message):
        load(folder, TENSORRT, device="cuda:0")


# --- Nodes that would run on the CPU ----------------------------------------------------------------------------


@pytest.mark.usefixtures("idle_provider")
def test_a_node_that_the_gpu_has_no_kernel_for_fails_the_load_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    save_pair_graph(tmp_path / "1")
    message = (
        r"execution_provider: 'cuda': onnxruntime has no kernel on cuda:0 for 1 ReduceSum, and would run them on the "
        r"CPU, .* set allow_cpu_nodes: true to have it so"
    )
    with pytest.raises(InvalidConfig, match=message):
        load(tmp_path, {}, PAIR, device="cuda:0")


@pytest.mark.usefixtures("idle_provider")
def test_a_model_that_is_wholly_on_the_cpu_is_not_on_the_gpu_whatever_is_allowed(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"'cuda': it took none of the graph's nodes; those are: 1 on CPUExecution"):
        load(folder, {"allow_cpu_nodes": "true"}, device="cuda:0")


def _session(**nodes: list[str]) -> SimpleNamespace:
    """What an inference session tells of where its nodes are: operators by provider."""
    placed = [
        SimpleNamespace(
            ep_name=name,
            get_nodes=lambda kinds=kinds: [SimpleNamespace(domain="", name="", op_type=kind) for kind in kinds],
        )
        for name, kinds in nodes.items()
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: placed)


def test_what_computes_shapes_may_be_on_the_cpu_and_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(folder, device="cuda:0")
    session = _session(CUDAExecutionProvider=["MatMul", "Softmax"], CPUExecutionProvider=["Shape", "Gather", "Concat"])
    with caplog.at_level(logging.INFO):
        placement.check_placement(session, source, Parameters())
    assert "m: onnxruntime placed nodes: 2 on CUDAExecutionProvider, 3 on CPUExecutionProvider" in caplog.text


def test_nodes_on_the_cpu_are_as_many_as_the_configuration_allows(folder: Path) -> None:
    source = make_source(folder, device="cuda:0")
    session = _session(CUDAExecutionProvider=["MatMul"], CPUExecutionProvider=["Shape", "NonZero", "NonZero", "TfIdf"])
    with pytest.raises(InvalidConfig, match="has no kernel on cuda:0 for 2 NonZero, 1 TfIdf, and"):
        placement.check_placement(session, source, Parameters())
    placement.check_placement(session, source, Parameters(allow_cpu_nodes=True))


def test_tensorrt_that_takes_nothing_is_not_replaced_by_cuda(folder: Path) -> None:
    source = make_source(folder, device="cuda:0", parameters=TENSORRT)
    with pytest.raises(
        InvalidConfig, match=r"'tensorrt': it took none of the graph's nodes; those are: 1 on CUDAExecut"
    ):
        placement.check_placement(_session(CUDAExecutionProvider=["MatMul"]), source, parse_options(source))


# --- Settings ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu_build")
def test_cuda_computes_as_the_cpu_does_unless_told_otherwise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(providers, "require", lambda *arguments: asked.append(arguments[1:]))
    assert _choose(make_source(folder, device="cuda:1")) == [
        ("CUDAExecutionProvider", {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"})
    ]
    assert asked == []
    ((_, settings),) = _choose(
        make_source(folder, device="cuda:0", parameters={"tf32": "true", "device_memory_limit_mib": "512"})
    )
    assert settings["use_tf32"] == "1"
    assert settings["gpu_mem_limit"] == str(512 * 2**20)
    assert [each[1:] for each in asked] == [("tf32", "true")]


@pytest.mark.usefixtures("gpu_build")
def test_tensorrt_is_told_its_precision_its_effort_and_where_engines_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(tensorrt, "check_library", lambda _: None)
    monkeypatch.setattr(tensorrt, "require", lambda *arguments: asked.append(arguments[2:]))
    parameters = {
        **TENSORRT,
        "tensorrt_fp16": "true",
        "tensorrt_int8": "true",
        "tensorrt_layer_norm_fp32": "true",
        "tensorrt_workspace_mib": "1024",
        "tensorrt_optimization_level": "5",
    }
    source = make_source(folder, device="cuda:0", parameters=parameters, cache_path=tmp_path)
    (name, settings), (second, _) = _choose(source, quantized=True)
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert settings == {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_max_workspace_size": str(2**30),
        "trt_builder_optimization_level": "5",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_profile_min_shapes": "x:1x4",
        "trt_profile_opt_shapes": "x:8x4",
        "trt_profile_max_shapes": "x:8x4",
    }
    assert asked == [("tensorrt_fp16", "true"), ("tensorrt_int8", "true")]


@pytest.mark.usefixtures("gpu_build")
def test_int8_of_a_graph_without_scales_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "check_library", lambda _: None)
    source = make_source(folder, device="cuda:0", parameters={**TENSORRT, "tensorrt_int8": "true"})
    with pytest.raises(InvalidConfig, match="tensorrt_int8: 'true': the graph has no QuantizeLinear nodes"):
        _choose(source, quantized=False)


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize(
    ("parameters", "capability", "message"),
    [
        (
            {"tf32": "true"},
            (7, 5),
            "tf32: 'true': tf32 needs a GPU of compute capability 8.0 or more, and the model is",
        ),
        (
            {**TENSORRT, "tensorrt_fp16": "true"},
            (5, 2),
            "tensorrt_fp16: 'true': fp16 needs a GPU of compute capability",
        ),
        ({**TENSORRT, "tensorrt_bf16": "true"}, (7, 5), "tensorrt_bf16: 'true': bf16 needs .* nearest .* is fp16"),
        (
            {**TENSORRT, "tensorrt_int8": "true"},
            (7, 0),
            "tensorrt_int8: 'true': int8 needs a GPU of compute capability",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_precision_that_the_gpu_has_not_is_refused_with_the_nearest(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    parameters: dict[str, str],
    capability: tuple[int, int],
    message: str,
) -> None:
    monkeypatch.setattr(tensorrt, "check_library", lambda _: None)
    monkeypatch.setattr(hardware, "find_device", lambda name: hardware.Device(name, "a GPU", capability))
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        _choose(make_source(folder, device="cuda:0", parameters=parameters), quantized=True)


def _choose(source: ModelSource, *, quantized: bool = False) -> providers.Providers:
    return providers.choose_providers(source, parse_options(source), LINEAR, quantized=quantized)


def test_an_engine_is_built_for_all_shapes_that_the_signature_allows(folder: Path) -> None:
    source = make_source(folder, device="cuda:0", parameters=TENSORRT)
    assert tensorrt.make_profile(source, PAIR) == {
        "trt_profile_min_shapes": "values:1x1,mask:1x1",
        "trt_profile_opt_shapes": "values:8x64,mask:8x64",
        "trt_profile_max_shapes": "values:8x64,mask:8x64",
    }
    buckets = Buckets((1, 8), {"sequence": (16, 32)})
    profile = tensorrt.make_profile(replace(source, buckets=buckets), PAIR)
    assert profile["trt_profile_min_shapes"] == "values:1x16,mask:1x16"
    assert profile["trt_profile_max_shapes"] == "values:8x32,mask:8x32"
    outside = replace(buckets, outside=Outside.COMPILE)
    assert tensorrt.make_profile(replace(source, buckets=outside), PAIR) == tensorrt.make_profile(source, PAIR)


def test_a_graph_of_fixed_shapes_needs_no_profile(folder: Path) -> None:
    fixed = replace(LINEAR, max_batch_size=0)
    assert tensorrt.make_profile(make_source(folder, parameters=TENSORRT), fixed) == {}


@pytest.mark.parametrize(
    ("axis", "advice"),
    [
        (Dimension("length", 1), r"set preheat\.dimension\.length"),
        (Dimension(), r"name it with preheat\.shape\.x, and set preheat\.dimension\.NAME"),
    ],
    ids=["named", "nameless"],
)
def test_an_engine_of_unbounded_shapes_is_refused_with_the_way_to_bound_it(
    folder: Path, axis: Dimension, advice: str
) -> None:
    signature = Signature((TensorSpec("x", DataType.FP32, (axis,)),), LINEAR.outputs, 8)
    with pytest.raises(InvalidConfig, match=rf"'tensorrt': an engine is .* of input 'x' has no upper one: {advice}"):
        tensorrt.make_profile(make_source(folder, parameters=TENSORRT), signature)


def test_only_engines_are_kept_in_the_compile_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They depend on the GPU and on both libraries."""
    monkeypatch.setattr(backend, "find_device", lambda name: hardware.Device(name, "a GPU", (9, 0)))
    monkeypatch.setattr(tensorrt, "library_version", lambda: "101303")
    assert OnnxRuntimeBackend().environment(make_source(folder)) is None
    assert OnnxRuntimeBackend().environment(make_source(folder, device="cuda:0")) is None
    kept = OnnxRuntimeBackend().environment(make_source(folder, device="cuda:0", parameters=TENSORRT))
    assert kept == f"onnxruntime {ort.__version__}; tensorrt 101303; gpu a GPU (9, 0)"


@pytest.mark.usefixtures("idle_provider")
def test_convolutions_are_warmed_shape_by_shape_on_cuda_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library, cuDNN, prepares them for each shape."""
    (tmp_path / "1").mkdir()
    axes: list[str | int | None] = ["batch", 1, 8]
    node = helper.make_node("Conv", ["x", "x"], ["y"], kernel_shape=[8])
    graph = helper.make_graph(
        [node], "conv", [onnx_tensor("x", DataType.FP32, axes)], [onnx_tensor("y", DataType.FP32, ["batch", 1, 1])]
    )
    save_graph(tmp_path / "1", graph)
    shape = (Dimension.fixed(1), Dimension.fixed(8))
    signature = Signature(
        (TensorSpec("x", DataType.FP32, shape),), (TensorSpec("y", DataType.FP32, (Dimension.fixed(1),) * 2),), 8
    )
    monkeypatch.setattr("preheat_backends.onnxruntime.building.check_placement", lambda *_: None)
    assert not load(tmp_path, {}, signature).specializes_on_shape
    assert load(tmp_path, {}, signature, device="cuda:0").specializes_on_shape


def test_the_tensorrt_library_is_looked_for_by_the_version_that_the_provider_links() -> None:
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        assert tensorrt.library_version() == ""
    else:
        assert tensorrt.library_version().startswith("10")
