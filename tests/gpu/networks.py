"""One network as each backend's artifact, for the tests of backends on a GPU: what they take, and what is right."""

import importlib
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

from preheat.backend import Backend, Dimension, Model, ModelSource, Signature, TensorSpec
from preheat.tensors import Array, DataType
from preheat_backends.hardware import Arithmetic

DEVICE = "cuda:0"
MAX_BATCH = 32
# Multiples of 16, which the kernels of fp8 want; and weights of 8 MiB, which are seen in the GPU's memory.
WIDTH, HIDDEN = 64, 16384
WEIGHT_BYTES = 2 * 4 * WIDTH * HIDDEN
_WIDE = Dimension.fixed(WIDTH)
SIGNATURE = Signature(
    (TensorSpec("x", DataType.FP32, (_WIDE,)),), (TensorSpec("y", DataType.FP32, (_WIDE,)),), MAX_BATCH
)


class Network(nn.Module):
    """Two layers. No step of it is one that TF32 would be used for unasked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(nn.functional.relu(self.first(x)))
        return result


SOURCE = f"""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear({WIDTH}, {HIDDEN})
            self.second = nn.Linear({HIDDEN}, {WIDTH})

        def forward(self, x):
            return self.second(nn.functional.relu(self.first(x)))

    def build_model():
        with torch.device("meta"):
            return Network()
"""


def make_network() -> Network:
    """With the same weights each time."""
    network = Network().eval().requires_grad_(requires_grad=False)
    dice = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=dice)
    return network


def make_inputs(rows: int, seed: int = 0) -> dict[str, Array]:
    dice = np.random.default_rng(seed)
    return {"x": dice.standard_normal((rows, WIDTH), np.float32)}


def right_answer(inputs: Mapping[str, Array]) -> Array:
    """In fp32, on the host."""
    with torch.no_grad():
        answer: Array = make_network()(torch.from_numpy(inputs["x"].copy())).numpy()
    return answer


def save_module(folder: Path) -> None:
    (folder / "model.py").write_text(textwrap.dedent(SOURCE))
    save_file(make_network().state_dict(), folder / "model.safetensors")


def save_program(folder: Path) -> None:
    """Exported on the host: the backend moves it."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(make_network(), (torch.zeros(3, WIDTH),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")


def save_package(folder: Path) -> None:
    """Compiled for the GPU that is here, as the build tool does it."""
    from preheat_backends.aot_inductor.packaging import Recipe, compile_package
    from preheat_backends.aot_inductor.tracing import describe, load_served, trace

    network = folder / "network"
    network.mkdir()
    save_module(network)
    source = ModelSource("m", 1, version_path=network, config_path=folder / "config.pbtxt", device=DEVICE)
    served, signature = load_served(source, SIGNATURE, None)
    program = trace(served, signature, torch.device(DEVICE))
    compile_package(
        program, folder / "model.pt2", signature=describe(program, signature, ["y"]), source=source, recipe=Recipe(),
        say=lambda _: None,
    )  # fmt: skip


def save_graph(folder: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx, to write a graph")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in make_network().state_dict().items()]
    nodes = [
        helper.make_node("Gemm", ["x", "first.weight", "first.bias"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("Gemm", ["positive", "second.weight", "second.bias"], ["y"], transB=1),
    ]
    tensors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "network", tensors[:1], tensors[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )


def save_script(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(make_network(), torch.zeros(2, WIDTH))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, folder / "model.pt")


@dataclass(frozen=True)
class Case:
    """A backend with parameters. ``backend`` is "module:Class"; ``build`` writes the artifact into a version's folder.

    Answers are within ``tolerance``: of the length of what is right, so long may the difference be. ``by_torch``: what
    it has on the GPU, torch has allocated, and can count.
    """

    id: str
    backend: str
    build: Callable[[Path], None]
    parameters: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 1e-5
    arithmetic: Arithmetic = Arithmetic.FP32
    compiles: bool = False
    by_torch: bool = True

    @property
    def records(self) -> bool:
        """Whether it is replayed as CUDA graphs."""
        return self.parameters.get("mode") in ("reduce-overhead", "max-autotune")


EAGER = "preheat_backends.eager:EagerBackend"
TORCH_COMPILE = "preheat_backends.torch_compile:TorchCompileBackend"
TORCHAO = "preheat_backends.torchao:TorchaoBackend"
AOT_INDUCTOR = "preheat_backends.aot_inductor:AotInductorBackend"
ONNXRUNTIME = "preheat_backends.onnxruntime:OnnxRuntimeBackend"
TORCHSCRIPT = "preheat_backends.torchscript:TorchScriptBackend"

_INT8 = {"quantization": "int8_dynamic"}
_FP8 = {"quantization": "fp8_dynamic", "dtype": "bf16"}
_COMPILED = {"compile": "true"}
CASES = (
    Case("eager-module", EAGER, save_module),
    Case("eager-program", EAGER, save_program),
    Case("torch_compile-default", TORCH_COMPILE, save_module, compiles=True),
    Case("torch_compile-reduce-overhead", TORCH_COMPILE, save_module, {"mode": "reduce-overhead"}, compiles=True),
    Case("torch_compile-max-autotune", TORCH_COMPILE, save_module, {"mode": "max-autotune"}, compiles=True),
    Case("torchao-int8", TORCHAO, save_module, _INT8, 3e-2, Arithmetic.INT8),
    Case("torchao-int8-compiled", TORCHAO, save_module, {**_INT8, **_COMPILED}, 3e-2, Arithmetic.INT8, compiles=True),
    Case("torchao-fp8", TORCHAO, save_module, _FP8, 8e-2, Arithmetic.FP8),
    Case("torchao-fp8-compiled", TORCHAO, save_module, {**_FP8, **_COMPILED}, 8e-2, Arithmetic.FP8, compiles=True),
    Case("aot_inductor", AOT_INDUCTOR, save_package, compiles=True, by_torch=False),
    Case("onnxruntime-cuda", ONNXRUNTIME, save_graph, by_torch=False),
    Case("torchscript", TORCHSCRIPT, save_script),
)


def load(case: Case, folder: Path, *, device: str = DEVICE, **settings: Any) -> Model:
    """Load version 1 of the model that lies in ``folder``, as the server does."""
    backend = make_backend(case)
    source = ModelSource(
        "m", 1, version_path=folder / "1", config_path=folder / "config.pbtxt", device=device,
        parameters=case.parameters, **settings,
    )  # fmt: skip
    backend.complete(source)
    return backend.load(source, SIGNATURE)


def make_backend(case: Case) -> Backend:
    module, _, name = case.backend.partition(":")
    backend = getattr(importlib.import_module(module), name)()
    assert isinstance(backend, Backend)
    return backend
