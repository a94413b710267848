"""The cases that every backend is held to: for each, how its artifact is made and what it must answer.

A new backend adds its cases to ``CASES`` and its copying graph to ``COPIES``, and the whole contract suite runs on it.
"""

import importlib
import shutil
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch.export import Dim

from preheat.backend import (
    Backend,
    Dimension,
    Instance,
    Model,
    ModelSource,
    Request,
    RequestSession,
    Signature,
    TensorSession,
    TensorSpec,
)
from preheat.errors import ServingError
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.torch_tensors import DTYPES

MAX_BATCH = 8
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 0.5
BIAS = np.array([0.25, -1.0, 2.0], np.float32)

FOUR, THREE, ONE = Dimension.fixed(4), Dimension.fixed(3), Dimension.fixed(1)
SEQUENCE = Dimension("sequence", minimum=1, maximum=64)

# One fixed axis behind the batch; and two inputs that must be as long as each other.
LINEAR = Signature((TensorSpec("x", DataType.FP32, (FOUR,)),), (TensorSpec("y", DataType.FP32, (THREE,)),), MAX_BATCH)
PAIR = Signature(
    (TensorSpec("values", DataType.FP32, (SEQUENCE,)), TensorSpec("mask", DataType.INT64, (SEQUENCE,))),
    (TensorSpec("masked", DataType.FP32, (SEQUENCE,)), TensorSpec("total", DataType.FP32, (ONE,))),
    MAX_BATCH,
)
ECHO = Signature(
    PAIR.inputs,
    (TensorSpec("values_again", DataType.FP32, (SEQUENCE,)), TensorSpec("mask_again", DataType.INT64, (SEQUENCE,))),
    MAX_BATCH,
)


@dataclass(frozen=True)
class Case:
    """A backend, the artifact it is given, and what it must make of it.

    ``backend`` is "module:Class", imported when the case is used. ``build`` writes the artifact into a version's
    folder; its main file is ``artifact``, None if there is none. ``completes``: the artifact says its signature.
    ``parameters`` are the backend's; ``failing`` are such with which it fails; without any, it must fail on inputs that
    do not fit each other. Answers are right within ``tolerance``, relative and absolute.
    ``takes_any_parameter``: they are the model's own, and the backend cannot tell an unknown one.
    """

    id: str
    backend: str
    build: Callable[[Path], None]
    signature: Signature
    reference: Callable[[Tensors], Tensors]
    artifact: str | None
    completes: bool
    failing: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 1e-6
    takes_any_parameter: bool = False

    def make_backend(self) -> Backend:
        return make_backend(self.backend)


@dataclass(frozen=True)
class Copy:
    """A backend that copies its input ``x`` to its output ``y``, of each of ``datatypes``."""

    id: str
    backend: str
    build: Callable[[Path, DataType], None]
    datatypes: tuple[DataType, ...]


def make_backend(target: str) -> Backend:
    module, _, name = target.partition(":")
    backend = getattr(importlib.import_module(module), name)()
    assert isinstance(backend, Backend)
    return backend


def make_source(folder: Path, **settings: Any) -> ModelSource:
    """A source for version 1 of a model that lies in ``folder``."""
    return ModelSource("m", 1, version_path=folder / "1", config_path=folder / "config.pbtxt", **settings)


class BatchesAsRequests(TensorSession):
    """A session that sees requests whole, for tests that know of batches: each batch is one request."""

    def __init__(self, session: RequestSession) -> None:
        self._session = session

    def infer(self, inputs: Tensors) -> Tensors:
        rows = next(iter(inputs.values())).shape[0]
        (outcome,) = self._session.execute([Request("1", inputs, rows, (), {})])
        if isinstance(outcome, ServingError):
            raise outcome
        return outcome.outputs

    def close(self) -> None:
        self._session.close()


def open_session(model: Model, ordinal: int = 0, *, threads: int = 1) -> TensorSession:
    """A session of ``model``, on this thread."""
    session = model.open(Instance(ordinal, "cpu", threads))
    if isinstance(session, RequestSession):
        return BatchesAsRequests(session)
    assert isinstance(session, TensorSession)
    return session


@contextmanager
def opened(model: Model, *, threads: int = 1) -> Iterator[TensorSession]:
    """A session of ``model``, on this thread; closes both."""
    session = open_session(model, threads=threads)
    try:
        yield session
    finally:
        session.close()
        model.close()


def make_inputs(signature: Signature, rows: int, *, seed: int = 0, sequence: int = 5) -> dict[str, Array]:
    """Random inputs for ``signature``, ``sequence`` long where an axis may vary."""
    random = np.random.default_rng(seed)
    inputs = {}
    for spec in signature.inputs:
        shape = (rows, *(sequence if axis.size is None else axis.size for axis in spec.shape))
        inputs[spec.name] = random.integers(0, 2, shape).astype(spec.datatype.numpy)
        if spec.datatype is DataType.FP32:
            inputs[spec.name] += random.random(shape, np.float32)
    return inputs


def linear_reference(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] @ WEIGHT.T + BIAS}


def pair_reference(inputs: Tensors) -> Tensors:
    masked = inputs["values"] * inputs["mask"].astype(np.float32)
    return {"masked": masked, "total": masked.sum(axis=1, keepdims=True)}


def echo_reference(inputs: Tensors) -> Tensors:
    return {f"{name}_again": array for name, array in inputs.items()}


class LinearModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.layer.load_state_dict({"weight": torch.from_numpy(WEIGHT), "bias": torch.from_numpy(BIAS)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


class PairModule(torch.nn.Module):
    def forward(self, values: torch.Tensor, *, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        masked = values * mask
        return {"masked": masked, "total": masked.sum(dim=1, keepdim=True)}


class CopyModule(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_linear_program(folder: Path) -> None:
    batch = Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(LinearModule().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")


def save_pair_program(folder: Path) -> None:
    axes = {0: Dim("batch", min=1, max=MAX_BATCH), 1: Dim("sequence", min=1, max=64)}
    program = torch.export.export(
        PairModule().eval(),
        (torch.zeros(2, 5),),
        {"mask": torch.ones(2, 5, dtype=torch.int64)},
        dynamic_shapes={"values": axes, "mask": axes},
    )
    torch.export.save(program, folder / "model.pt2")


def save_copy_program(folder: Path, datatype: DataType) -> None:
    example = torch.zeros(2, 3, dtype=DTYPES[datatype])
    program = torch.export.export(CopyModule().eval(), (example,), dynamic_shapes=({0: Dim.AUTO},))
    torch.export.save(program, folder / "model.pt2")


LINEAR_SOURCE = """
    import torch

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)

    def build_model():
        with torch.device("meta"):
            return Linear()
"""
PAIR_SOURCE = """
    import torch

    class Pair(torch.nn.Module):
        def forward(self, values, mask):
            masked = values * mask
            return masked, masked.sum(dim=1, keepdim=True)

    def build_model():
        return Pair()
"""
COPY_SOURCE = """
    import torch

    class Copy(torch.nn.Module):
        def forward(self, x):
            return x

    def build_model():
        return Copy()
"""


def save_python(folder: Path, source: str) -> None:
    (folder / "model.py").write_text(textwrap.dedent(source))


def save_linear_python(folder: Path) -> None:
    save_python(folder, LINEAR_SOURCE)
    weights = {"layer.weight": torch.from_numpy(WEIGHT), "layer.bias": torch.from_numpy(BIAS)}
    save_file(weights, folder / "model.safetensors")


def save_linear_checkpoint(folder: Path) -> None:
    """The same network with weights that torchao has quantized."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = LinearModule().requires_grad_(requires_grad=False)
    quantize_(module, Int8WeightOnlyConfig(set_inductor_config=False))
    save_python(folder, LINEAR_SOURCE)
    tensors, metadata = flatten_tensor_state_dict(module.state_dict())
    save_file(tensors, folder / "model.safetensors", metadata)


def save_pair_python(folder: Path) -> None:
    save_python(folder, PAIR_SOURCE)


def save_copy_python(folder: Path, datatype: DataType) -> None:
    del datatype
    save_python(folder, COPY_SOURCE)


_ONNX_ELEMENTS = {
    DataType.BOOL: TensorProto.BOOL,
    DataType.UINT8: TensorProto.UINT8,
    DataType.UINT16: TensorProto.UINT16,
    DataType.UINT32: TensorProto.UINT32,
    DataType.UINT64: TensorProto.UINT64,
    DataType.INT8: TensorProto.INT8,
    DataType.INT16: TensorProto.INT16,
    DataType.INT32: TensorProto.INT32,
    DataType.INT64: TensorProto.INT64,
    DataType.FP16: TensorProto.FLOAT16,
    DataType.FP32: TensorProto.FLOAT,
    DataType.FP64: TensorProto.DOUBLE,
    DataType.BF16: TensorProto.BFLOAT16,
    DataType.BYTES: TensorProto.STRING,
}


def onnx_tensor(name: str, datatype: DataType, shape: list[str | int | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _ONNX_ELEMENTS[datatype], shape)


def save_graph(folder: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def save_linear_graph(folder: Path) -> None:
    weights = [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")]
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    inputs, outputs = onnx_tensor("x", DataType.FP32, ["batch", 4]), onnx_tensor("y", DataType.FP32, ["batch", 3])
    save_graph(folder, helper.make_graph([node], "linear", [inputs], [outputs], weights))


def save_pair_graph(folder: Path) -> None:
    axes: list[str | int | None] = ["batch", "sequence"]
    nodes = [
        helper.make_node("Cast", ["mask"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["values", "factor"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["total"], keepdims=1),
    ]
    inputs = [onnx_tensor("values", DataType.FP32, axes), onnx_tensor("mask", DataType.INT64, axes)]
    outputs = [onnx_tensor("masked", DataType.FP32, axes), onnx_tensor("total", DataType.FP32, ["batch", 1])]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    save_graph(folder, helper.make_graph(nodes, "pair", inputs, outputs, [axis]))


def save_copy_graph(folder: Path, datatype: DataType) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs, outputs = onnx_tensor("x", datatype, ["batch", 3]), onnx_tensor("y", datatype, ["batch", 3])
    save_graph(folder, helper.make_graph([node], "copy", [inputs], [outputs]))


def save_linear_ir(folder: Path) -> None:
    """As OpenVINO writes it. The suite renames the main file only: its weights are there for that, too."""
    save_linear_graph(folder)
    save_ir(folder)
    shutil.copy(folder / "model.bin", folder / "encoder.bin")


def save_ir(folder: Path) -> None:
    """Put OpenVINO's format in place of ``model.onnx``."""
    from preheat_backends.openvino.library import get_core, ov

    graph = folder / "model.onnx"
    ov.save_model(get_core().read_model(graph), folder / "model.xml", compress_to_fp16=False)
    graph.unlink()


def save_script(folder: Path, make: Callable[[], torch.jit.ScriptModule]) -> None:
    """Save the TorchScript that ``make`` makes, without what torch has to say of its deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(make(), folder / "model.pt")


def save_linear_script(folder: Path) -> None:
    save_script(folder, lambda: torch.jit.trace(LinearModule().eval(), torch.zeros(2, 4)))  # type: ignore[no-untyped-call]


def save_pair_script(folder: Path) -> None:
    save_script(folder, lambda: torch.jit.script(PairModule().eval()))


def save_copy_script(folder: Path, datatype: DataType) -> None:
    del datatype
    save_script(folder, lambda: torch.jit.script(CopyModule().eval()))


def save_own_package(folder: Path) -> None:
    """As the build tool makes it."""
    from tests.backends import aot_packages

    aot_packages.save_own_package(folder)


def save_foreign_package(folder: Path) -> None:
    """As torch makes it, without our build tool."""
    from tests.backends import aot_packages

    aot_packages.save_foreign_package(folder)


# It writes to its input, which a model may.
TRITON_PAIR_SOURCE = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            values = pb_utils.get_input_tensor_by_name(request, "values").as_numpy()
            values *= pb_utils.get_input_tensor_by_name(request, "mask").as_numpy()
            masked = pb_utils.Tensor("masked", values)
            return pb_utils.InferenceResponse([masked, pb_utils.Tensor("total", values.sum(axis=1, keepdims=True))])
"""
TRITON_COPY_SOURCE = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array)]) for array in inputs]
"""


def save_triton_pair(folder: Path) -> None:
    save_python(folder, TRITON_PAIR_SOURCE)


def save_triton_copy(folder: Path, datatype: DataType) -> None:
    del datatype
    save_python(folder, TRITON_COPY_SOURCE)


def save_nothing(folder: Path, datatype: DataType | None = None) -> None:
    """A double needs no artifact."""
    del folder, datatype


AOT_INDUCTOR = "preheat_backends.aot_inductor:AotInductorBackend"
DOUBLE = "preheat_backends.double:DoubleBackend"
EAGER = "preheat_backends.eager:EagerBackend"
ONNXRUNTIME = "preheat_backends.onnxruntime:OnnxRuntimeBackend"
OPENVINO = "preheat_backends.openvino:OpenVinoBackend"
PYTHON = "preheat_backends.python:PythonBackend"
TORCH_COMPILE = "preheat_backends.torch_compile:TorchCompileBackend"
TORCHAO = "preheat_backends.torchao:TorchaoBackend"
TORCHSCRIPT = "preheat_backends.torchscript:TorchScriptBackend"

CASES = (
    Case("double", DOUBLE, save_nothing, ECHO, echo_reference, None, completes=False, failing={"behavior": "fail"}),
    Case("aot_inductor-own", AOT_INDUCTOR, save_own_package, PAIR, pair_reference, "model.pt2", completes=True),
    Case(
        "aot_inductor-foreign", AOT_INDUCTOR, save_foreign_package, PAIR, pair_reference, "model.pt2", completes=False
    ),
    Case("eager-pt2-linear", EAGER, save_linear_program, LINEAR, linear_reference, "model.pt2", completes=True),
    Case("eager-pt2-pair", EAGER, save_pair_program, PAIR, pair_reference, "model.pt2", completes=True),
    Case("eager-py-linear", EAGER, save_linear_python, LINEAR, linear_reference, "model.py", completes=False),
    Case("eager-py-pair", EAGER, save_pair_python, PAIR, pair_reference, "model.py", completes=False),
    Case("onnxruntime-linear", ONNXRUNTIME, save_linear_graph, LINEAR, linear_reference, "model.onnx", completes=True),
    Case("onnxruntime-pair", ONNXRUNTIME, save_pair_graph, PAIR, pair_reference, "model.onnx", completes=True),
    Case("openvino-ir-linear", OPENVINO, save_linear_ir, LINEAR, linear_reference, "model.xml", completes=True),
    Case("openvino-onnx-pair", OPENVINO, save_pair_graph, PAIR, pair_reference, "model.onnx", completes=True),
    Case(
        "python-pair",
        PYTHON,
        save_triton_pair,
        PAIR,
        pair_reference,
        "model.py",
        completes=False,
        takes_any_parameter=True,
    ),
    Case(
        "torch_compile-py-linear",
        TORCH_COMPILE,
        save_linear_python,
        LINEAR,
        linear_reference,
        "model.py",
        completes=False,
    ),
    Case(
        "torch_compile-pt2-pair",
        TORCH_COMPILE,
        save_pair_program,
        PAIR,
        pair_reference,
        "model.pt2",
        completes=True,
        parameters={"dynamic": "true"},
    ),
    Case(
        "torchao-linear",
        TORCHAO,
        save_linear_python,
        LINEAR,
        linear_reference,
        "model.py",
        completes=False,
        parameters={"quantization": "int8_weight_only"},
        tolerance=2e-2,
    ),
    Case(
        "torchao-fp8",
        TORCHAO,
        save_linear_python,
        LINEAR,
        linear_reference,
        "model.py",
        completes=False,
        parameters={"quantization": "fp8_weight_only"},
        tolerance=1e-1,
    ),
    Case(
        "torchao-checkpoint",
        TORCHAO,
        save_linear_checkpoint,
        LINEAR,
        linear_reference,
        "model.py",
        completes=False,
        parameters={"quantization": "checkpoint"},
        tolerance=2e-2,
    ),
)

_NUMBERS = tuple(datatype for datatype in DataType if datatype is not DataType.BYTES)
# OpenVINO has 32 bits for integers of 64, and the backend refuses what they do not hold.
_IN_32_BITS = tuple(datatype for datatype in _NUMBERS if datatype not in (DataType.INT64, DataType.UINT64))
COPIES = (
    Copy("double", DOUBLE, save_nothing, tuple(DataType)),
    Copy("eager-pt2", EAGER, save_copy_program, _NUMBERS),
    Copy("eager-py", EAGER, save_copy_python, _NUMBERS),
    Copy("onnxruntime", ONNXRUNTIME, save_copy_graph, tuple(DataType)),
    Copy("openvino", OPENVINO, save_copy_graph, _IN_32_BITS),
    Copy("python", PYTHON, save_triton_copy, tuple(DataType)),
    Copy("torch_compile", TORCH_COMPILE, save_copy_python, _NUMBERS),
    Copy("torchscript", TORCHSCRIPT, save_copy_script, _NUMBERS),
)
