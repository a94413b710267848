"""The same network for every engine and precision: which there are, and how each one's model folder is written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from benchmarks.options import EXAMPLES
from loadtests.model import Model, Tensor
from loadtests.options import LoadOptions
from loadtests.rows import read_rows
from numpy.typing import NDArray
from tests.sentences import SENTENCES, tokenize

Inputs: TypeAlias = Mapping[str, NDArray[Any]]

SEQUENCE = 128
ROWS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Network:
    """An example model that every engine is given. ``samples`` are real inputs, stacked along axis 0."""

    name: str
    inputs: str
    outputs: str
    output: str
    samples: Callable[[], Inputs]


@dataclass(frozen=True, slots=True)
class Variant:
    """A network by an engine. ``write`` fills the folder of its version; None: it is built from the eager one's."""

    name: str
    precision: str
    backend: str
    write: Callable[[Network, Path], None] | None
    parameters: Mapping[str, str] = field(default_factory=dict)
    build: Sequence[str] = ()


def sentences() -> Inputs:
    """All sentences of the tests, padded to the one length or cut to it."""
    tokens = tokenize(SENTENCES)
    return {name: _fit(array) for name, array in tokens.items()}


def pictures() -> Inputs:
    """The pictures that the example carries."""
    tensor = Tensor("image", "FP32", (3, 224, 224))
    described = Model("efficientnet", "", 8, {"image": tensor}, {}, frozenset())
    path = EXAMPLES / "efficientnet" / "data" / "perf_analyzer.json"
    rows = read_rows(path, described, LoadOptions("efficientnet", "", 1, {}, 1, path, 10.0))
    return {"image": np.stack([row["image"] for row in rows])}


NETWORKS = {
    "minilm": Network(
        "minilm",
        "".join(
            f'input {{ name: "{name}" data_type: TYPE_INT64 dims: [ {SEQUENCE} ] }}\n'
            for name in ("input_ids", "attention_mask")
        ),
        'output { name: "sentence_embedding" data_type: TYPE_FP32 dims: [ 384 ] }\n',
        "sentence_embedding",
        sentences,
    ),
    "efficientnet": Network(
        "efficientnet",
        'input { name: "image" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] }\n',
        'output { name: "logits" data_type: TYPE_FP32 dims: [ 1000 ] }\n',
        "logits",
        pictures,
    ),
}


def variants(network: Network) -> Sequence[Variant]:
    """All there are of ``network``, the reference first."""
    compiled = {"freezing": "true"}
    bf16 = {"dtype": "bf16"}
    found = [
        # With what the tool that packages a quantized network measures its activations on.
        Variant("eager", "fp32", "eager", _write_calibrated),
        Variant("torch_compile", "fp32", "torch_compile", _write_python, compiled),
        Variant("torch_compile bf16", "bf16", "torch_compile", _write_python, compiled | bf16),
        Variant("aot_inductor", "fp32", "aot_inductor", None),
        Variant("aot_inductor bf16", "bf16", "aot_inductor", None, build=["--dtype", "bf16"]),
        Variant("aot_inductor pt2e_static", "int8", "aot_inductor", None, build=["--quantization", "pt2e_static"]),
        Variant("torchscript", "fp32", "torchscript", _write_torchscript),
        Variant("onnxruntime", "fp32", "onnxruntime", _write_onnx),
        Variant("openvino", "fp32", "openvino", _write_onnx),
        Variant("openvino bf16", "bf16", "openvino", _write_onnx, {"inference_precision": "bf16"}),
        *(_quantized(mode) for mode in ("int8_weight_only", "int8_dynamic")),
        _quantized("pt2e_static", write=_write_calibrated, parameters=compiled),
    ]
    if network.name == "minilm":
        found += [
            Variant("onnxruntime int8", "int8", "onnxruntime", _write_int8_onnx),
            Variant("openvino int8", "int8", "openvino", _write_int8_onnx),
        ]
    return found


def _quantized(
    mode: str,
    *,
    write: "Callable[[Network, Path], None] | None" = None,
    parameters: Mapping[str, str] | None = None,
) -> Variant:
    asked = {"quantization": mode, "compile": "true", **(parameters or {})}
    return Variant(f"torchao {mode}", "int8", "torchao", write or _write_python, asked)


def write_model(repository: Path, network: Network, variant: Variant) -> Path:
    """Write the model folder of ``variant``; which. Raises CalledProcessError where a tool cannot build it."""
    folder = repository / f"{network.name}_{variant.name.replace(' ', '_')}"
    if variant.write is None:
        return _build(repository, folder, network, variant)
    (folder / "1").mkdir(parents=True)
    variant.write(network, folder / "1")
    (folder / "config.pbtxt").write_text(_config(folder.name, network, variant), encoding="utf-8")
    return folder


def _config(name: str, network: Network, variant: Variant) -> str:
    keys = {"preheat.buckets": ",".join(map(str, ROWS)), **variant.parameters}
    lines = [f'name: "{name}"\nbackend: "{variant.backend}"\nmax_batch_size: {max(ROWS)}\ndynamic_batching {{ }}']
    lines += [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in keys.items()]
    return "\n".join(lines) + f"\n{network.inputs}{network.outputs}"


def _build(repository: Path, folder: Path, network: Network, variant: Variant) -> Path:
    """By the tool that packages models for AOTInductor, from the eager variant's folder."""
    source = repository / f"{network.name}_eager"
    command = [sys.executable, "-m", "preheat_backends.aot_inductor.build", str(source), str(folder), *variant.build]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - it is this project's own
    return folder


def _write_python(network: Network, version: Path) -> None:
    for name in ("model.py", "model.safetensors"):
        shutil.copy2(EXAMPLES / network.name / "1" / name, version / name)


def _write_calibrated(network: Network, version: Path) -> None:
    from safetensors.numpy import save_file

    _write_python(network, version)
    save_file(dict(network.samples()), version / "calibration.safetensors")


def _write_onnx(network: Network, version: Path) -> None:
    exported = EXAMPLES / f"{network.name}_onnx" / "1" / "model.onnx"
    if exported.exists():
        shutil.copy2(exported, version / "model.onnx")
    else:
        _export(_EXPORT_ONNX, network, version)


def _write_int8_onnx(network: Network, version: Path) -> None:
    shutil.copy2(EXAMPLES / f"{network.name}_onnx_int8" / "1" / "model.onnx", version / "model.onnx")


def _write_torchscript(network: Network, version: Path) -> None:
    _export(_EXPORT_TORCHSCRIPT, network, version)


def _export(script: str, network: Network, version: Path) -> None:
    """Run ``script`` in a process of its own: torch's exporters leave much behind."""
    shapes = {name: [2, *array.shape[1:]] for name, array in network.samples().items()}
    types = {name: str(array.dtype) for name, array in network.samples().items()}
    arguments = [str(EXAMPLES / network.name / "1"), str(version), json.dumps(shapes), json.dumps(types)]
    command = [sys.executable, "-c", _LOAD + script, *arguments, network.output]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - it is this project's own


def _fit(tokens: NDArray[Any]) -> NDArray[Any]:
    missing = max(0, SEQUENCE - tokens.shape[1])
    return np.pad(tokens, ((0, 0), (0, missing)))[:, :SEQUENCE]


_LOAD = """\
import json, runpy, sys, warnings
import torch
from safetensors.torch import load_file
source, target, shapes, types, output = sys.argv[1:]
warnings.simplefilter("ignore")
module = runpy.run_path(source + "/model.py", run_name="network")["build_model"]()
module.load_state_dict(load_file(source + "/model.safetensors"), assign=True)
module.eval()
types = json.loads(types)
example = {name: torch.zeros(shape, dtype=getattr(torch, types[name])) for name, shape in json.loads(shapes).items()}
"""
_EXPORT_ONNX = """\
batch = torch.export.Dim("batch", min=1, max=64)
program = torch.onnx.export(
    module, kwargs=example, dynamo=True, dynamic_shapes={name: {0: batch} for name in example},
    input_names=list(example), output_names=[output],
)
program.save(target + "/model.onnx")
"""
_EXPORT_TORCHSCRIPT = """\
with torch.no_grad():
    torch.jit.trace(module, example_kwarg_inputs=example, check_trace=False).save(target + "/model.pt")
"""
