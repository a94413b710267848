"""torchao's checkpoints of quantized weights: what was written is what is served, and all else is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.backends.compiling import serving
from tests.backends.torchao_networks import (
    decibels,
    expected,
    load_quantized,
    make_module,
    rows,
    save_network,
)
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4Tensor,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerTensor,
    quantize_,
)

from preheat.errors import InvalidArtifact, InvalidConfig, ServingError
from preheat_backends.torchao import checkpoint

INT8 = Int8WeightOnlyConfig(set_inductor_config=False)
DYNAMIC = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
BY_BATCH = Int8DynamicActivationInt8WeightConfig(granularity=PerTensor(), set_inductor_config=False)
FP8 = Float8WeightOnlyConfig(set_inductor_config=False)
INT4 = PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)


def quantized(config: Any, *, but: str = "") -> dict[str, torch.Tensor]:
    """The state dict of the network with quantized layers, all ``but`` one."""
    module = make_module()
    quantize_(module, config, filter_fn=lambda child, name: isinstance(child, torch.nn.Linear) and name != but)
    return dict(module.state_dict())


def write_safetensors(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    path = save_network(folder, weights=False) / "1" / "model.safetensors"
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, path, metadata)
    return path


def write_pickled(folder: Path, state: object) -> Path:
    path = save_network(folder, weights=False) / "1" / "model.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("write", [write_safetensors, write_pickled])
@pytest.mark.parametrize(
    ("config", "near"), [(INT8, 35.0), (DYNAMIC, 30.0), (FP8, 25.0)], ids=["int8", "int8-dynamic", "fp8"]
)
def test_what_was_written_is_what_is_served(
    tmp_path: Path, config: Any, near: float, write: Callable[[Path, dict[str, torch.Tensor]], Path]
) -> None:
    state = quantized(config)
    write(tmp_path, state)
    module = make_module()
    module.load_state_dict(state, assign=True)
    exact = module(torch.from_numpy(rows(4)["x"])).detach().numpy()
    with serving(load_quantized(tmp_path, "checkpoint")) as instances:
        answer = instances.infer(rows(4))["y"]
    np.testing.assert_array_equal(answer, exact)
    assert near < decibels(answer, expected(rows(4))) < 80


def test_weights_of_four_bits_are_served_from_a_state_dict(tmp_path: Path) -> None:
    write_pickled(tmp_path, quantized(INT4, but="head"))
    with serving(load_quantized(tmp_path, "checkpoint")) as instances:
        assert 15 < decibels(instances.infer(rows(4))["y"], expected(rows(4))) < 40


def test_the_checkpoints_type_may_be_said_and_must_be_true(tmp_path: Path) -> None:
    write_safetensors(tmp_path, quantized(INT8))
    load_quantized(tmp_path, "checkpoint", parameters={"dtype": "fp32"}).close()
    with pytest.raises(InvalidConfig, match=r"weights that are not torch\.bfloat16, which parameter dtype says"):
        load_quantized(tmp_path, "checkpoint", parameters={"dtype": "bf16"})


def test_weights_whose_products_would_overflow_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without VNNI, in the kernels that frozen weights have."""
    monkeypatch.setattr(checkpoint, "saturates", lambda: True)
    write_safetensors(tmp_path, quantized(DYNAMIC))
    frozen = {"compile": "true", "freezing": "true"}
    with pytest.raises(InvalidConfig, match=r"products overflow in the kernels .* without VNNI: 'up\.weight', 'down\."):
        load_quantized(tmp_path, "checkpoint", parameters=frozen)
    load_quantized(tmp_path, "checkpoint", parameters={"compile": "true"}).close()
    narrow = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=True)
    write_safetensors(tmp_path, quantized(narrow))
    load_quantized(tmp_path, "checkpoint", parameters=frozen).close()


class Foreign:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("head", "tail"): tensor for name, tensor in state.items()}


def _narrow(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "down.bias": torch.zeros(3)}


def _short(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name != "down.bias"}


def plain_int4() -> torch.Tensor:
    """128 x 64 weights of 4 bits as torchao's default packs them, for which it needs a further package."""
    scales = torch.ones(2, 128)
    packed = torch.zeros(128, 32, dtype=torch.int8)
    weight: torch.Tensor = Int4Tensor(packed, scales, torch.zeros(2, 128), [1, 32], torch.Size([128, 64]))
    return weight


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (
        lambda folder: save_network(folder, weights=False),
        r"takes one of model\.safetensors and model\.pt, and neither is there; quantize the module by torchao",
    ),
    "both": (
        lambda folder: (write_safetensors(folder, quantized(INT8)), write_pickled(folder, quantized(INT8))),
        r"takes one of model\.safetensors and model\.pt, and both is there",
    ),
    "floating-point": (save_network, r"its header does not say which tensors are parts of quantized ones"),
    "safetensors-cut-short": (
        lambda folder: _cut(write_safetensors(folder, quantized(INT8))),
        r"model\.safetensors: safetensors cannot read it",
    ),
    "pickled-cut-short": (
        lambda folder: _cut(write_pickled(folder, quantized(INT8))),
        r"model\.pt is a zip archive that is cut short or damaged; .* takes what torch\.save wrote",
    ),
    "foreign": (
        lambda folder: write_pickled(folder, {"head.weight": Foreign()}),
        r"model\.pt: is refused, since it has something other than tensors in it",
    ),
    "bare-pickle": (
        lambda folder: write_pickled(folder, {}).write_bytes(pickle.dumps({"head.weight": 1})),
        r"model\.pt is a Python pickle; the backend 'torchao' takes what torch\.save wrote",
    ),
    "no-state-dict": (lambda folder: write_pickled(folder, [1, 2]), r"holds a list, not the state dict of a module"),
    "other-names": (
        lambda folder: write_safetensors(folder, _renamed(quantized(INT8))),
        r"Missing key\(s\) in state_dict: .*\"head\.weight\".* Unexpected key\(s\) .*\"tail\.weight\"",
    ),
    "too-few": (lambda folder: write_pickled(folder, _short(quantized(INT8))), r"Missing key\(s\).*\"down\.bias\""),
    "other-shape": (
        lambda folder: write_safetensors(folder, _narrow(quantized(INT8))),
        r"size mismatch for down\.bias: .*torch\.Size\(\[3\]\)",
    ),
    "nothing-quantized": (
        lambda folder: write_pickled(folder, make_module().state_dict()),
        r"has no quantized weight in its checkpoint; set quantization to how",
    ),
    "of-another-package": (
        lambda folder: write_pickled(folder, {**make_module().state_dict(), "up.weight": plain_int4()}),
        r"has a Int4Tensor as 'up\.weight', which is not served, its kernels being in the package mslk",
    ),
    "scaled-by-the-batch": (
        lambda folder: write_safetensors(folder, quantized(BY_BATCH)),
        r"scale activations by the whole batch, .*: 'up\.weight', 'down\.weight', 'head\.weight'; quantize them with",
    ),
    "not-served": (
        lambda folder: write_pickled(folder, quantized(IntxWeightOnlyConfig())),
        r"has a IntxUnpackedToInt8Tensor as 'up\.weight', which is not served; served are Int8Tensor",
    ),
}


@pytest.mark.parametrize(("write", "message"), BROKEN.values(), ids=BROKEN)
def test_other_checkpoints_are_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path)
    with pytest.raises(ServingError, match=message) as refusal:
        load_quantized(tmp_path, "checkpoint")
    assert isinstance(refusal.value, InvalidArtifact | InvalidConfig)


def test_a_header_that_names_a_foreign_class_is_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, quantized(DYNAMIC))
    path.write_bytes(path.read_bytes().replace(b"PerRow", b"Popen!"))
    with pytest.raises(InvalidArtifact, match=r"torchao cannot put its tensors together: ValueError: .*Popen!"):
        load_quantized(tmp_path, "checkpoint")


@pytest.mark.parametrize("key", ["only", "skip"])
def test_layers_of_a_checkpoint_are_not_chosen(tmp_path: Path, key: str) -> None:
    write_safetensors(tmp_path, quantized(INT8))
    with pytest.raises(InvalidConfig, match=f"{key}: 'head': goes with parameter quantization: int8_weight_only, .*"):
        load_quantized(tmp_path, "checkpoint", parameters={key: "head"})
