"""torchao: layers quantized as asked for, and the same promises as torch_compile where they are compiled too."""

from pathlib import Path

import numpy as np
import pytest
from tests.backends import torchao_networks as networks
from tests.backends.compiling import LINEAR_NETWORK, SEQUENCES, buckets, load, rows, save_network, sequences, serving

from preheat.backend import Model
from preheat.compilations import CompilationKind
from preheat.errors import InvalidConfig
from preheat_backends.eager import EagerBackend
from preheat_backends.torchao import TorchaoBackend

# torchao's tensors have no hash of their own for torch's cache; the backend says so once, at its import.
pytestmark = [
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore:.*Tensor does not implement _stable_hash_for_caching"),
]


def load_quantized(folder: Path, quantization: str, **parameters: str) -> Model:
    return load(folder, backend=TorchaoBackend(), parameters={"quantization": quantization, **parameters})


@pytest.mark.parametrize(
    ("quantization", "parameters"),
    [
        ("int8_weight_only", {}),
        ("int8_dynamic", {}),
        ("int8_dynamic", {"compile": "true", "fullgraph": "true"}),
        ("int8_weight_only", {"compile": "true", "freezing": "true"}),
    ],
    ids=["weight-only", "dynamic", "dynamic-compiled", "weight-only-frozen"],
)
def test_quantized_answers_are_near_those_of_the_network(
    tmp_path: Path, quantization: str, parameters: dict[str, str]
) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, backend=EagerBackend())) as plain:
        expected = plain.infer(rows(2))["y"]
    with serving(load_quantized(folder, quantization, **parameters)) as model:
        answer = model.infer(rows(2))["y"]
        eager = model.infer(rows(2), eagerly=True)["y"]
        graphs = [each.kind for each in model.take()]
    np.testing.assert_allclose(answer, expected, atol=2e-2)
    np.testing.assert_allclose(answer, eager, atol=1e-5)
    assert np.abs(answer - expected).max() > 0
    assert graphs == [CompilationKind.GRAPH] * ("compile" in parameters)


SMALL: dict[str, tuple[str, dict[str, str], float]] = {
    "fp8": ("fp8_weight_only", {}, 25.0),
    "fp8-bf16": ("fp8_weight_only", {"dtype": "bf16"}, 25.0),
    "int4": ("int4_weight_only", {"group_size": "32", "skip": "head"}, 17.0),
    "int4-64": ("int4_weight_only", {"group_size": "64", "skip": "head"}, 15.0),
    "int4-hqq": ("int4_weight_only", {"group_size": "32", "int4_algorithm": "hqq", "skip": "head"}, 17.0),
    "int4-bf16": ("int4_weight_only", {"group_size": "32", "dtype": "bf16", "skip": "head"}, 17.0),
    "fp8-compiled": ("fp8_weight_only", {"compile": "true"}, 25.0),
    "int4-compiled": ("int4_weight_only", {"group_size": "32", "skip": "head", "compile": "true"}, 17.0),
    "int8-frozen": ("int8_dynamic", {"compile": "true", "freezing": "true"}, 25.0),
}


@pytest.mark.parametrize(("quantization", "parameters", "near"), SMALL.values(), ids=SMALL)
def test_smaller_weights_answer_nearly_as_the_network_does(
    tmp_path: Path, quantization: str, parameters: dict[str, str], near: float
) -> None:
    """``near`` is in decibels of the answer by the difference."""
    inputs = networks.rows(8)
    model = networks.load_quantized(networks.save_network(tmp_path), quantization, parameters=parameters)
    with serving(model) as instances:
        answer, eager = instances.infer(inputs)["y"], instances.infer(inputs, eagerly=True)["y"]
        graphs = [each.kind for each in instances.take()]
    assert near < networks.decibels(answer, networks.expected(inputs)) < 60
    assert networks.decibels(answer, eager) > 40
    assert graphs == [CompilationKind.GRAPH] * ("compile" in parameters)


@pytest.mark.parametrize("quantization", ["int8_dynamic", "int4_weight_only", "fp8_weight_only"])
def test_a_row_answers_the_same_whatever_it_shares_a_batch_with(tmp_path: Path, quantization: str) -> None:
    parameters = {"group_size": "32", "skip": "head"} if quantization == "int4_weight_only" else {}
    alone, together = networks.rows(8), networks.rows(8)
    together["x"][1:] *= 50
    model = networks.load_quantized(networks.save_network(tmp_path), quantization, parameters=parameters)
    with serving(model) as instances:
        first = instances.infer(alone)["y"][0]
        np.testing.assert_allclose(instances.infer(together)["y"][0], first, atol=1e-6)


def test_buckets_of_a_varying_dimension_are_compiled_one_by_one_and_then_nothing_is(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    model = load(
        folder,
        SEQUENCES,
        backend=TorchaoBackend(),
        parameters={"quantization": "int8_dynamic", "compile": "true"},
        buckets=buckets(2, sizes={"sequence": (4, 8)}),
    )
    assert model.specializes_on_shape
    with serving(model) as instances:
        for length in (4, 8, 4, 8):
            instances.infer(sequences(2, length))
        assert [each.what for each in instances.take()] == ["x[2,4,4]", "x[2,8,4]"]


def test_layers_on_which_torch_would_crash_are_refused_by_name(tmp_path: Path) -> None:
    """8-bit weights beside bf16 on the CPU, compiled: torch reads beyond weights of four columns."""
    folder = save_network(tmp_path, LINEAR_NETWORK)
    message = r"no safe kernel of 8-bit weights beside bf16 on the CPU, .* no multiple of 8: 'layer'; name them in"
    with pytest.raises(InvalidConfig, match=message):
        load_quantized(folder, "int8_weight_only", compile="true", dtype="bf16")
    load_quantized(folder, "int8_weight_only", compile="true", dtype="fp32").close()
    load_quantized(folder, "int8_weight_only", dtype="bf16").close()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"quantization: not set; must be one of int8_weight_only, int8_dynamic, int4_weight_only, fp8"),
        ({"quantization": "int3"}, r"quantization: 'int3': must be one of int8_weight_only, .* pt2e_static, .*point"),
        ({"quantization": "int4_weight_only"}, r"inputs are no multiple of group_size: 128: 'layer'; set a group_size"),
        (
            {"quantization": "int4_weight_only", "group_size": "48"},
            r"group_size: 48: must be one of 32, 64, 128 on cpu",
        ),
        (
            {"quantization": "int8_dynamic", "group_size": "32"},
            r"group_size: '32': goes with parameter quantization: int4_weight_only only",
        ),
        (
            {"quantization": "fp8_weight_only", "int4_algorithm": "hqq"},
            r"int4_algorithm: 'hqq': goes with parameter quantization: int4_weight_only only",
        ),
        (
            {"quantization": "int4_weight_only", "int4_algorithm": "x"},
            r"int4_algorithm: 'x': must be one of tinygemm, hqq",
        ),
        ({"quantization": "int8_dynamic", "dtype": "fp16"}, r"dtype: 'fp16': must be one of fp32, bf16 beside quan"),
        (
            {"quantization": "int8_dynamic", "freezing": "true"},
            r"freezing: 'true': goes with parameter compile: true only",
        ),
        (
            {"quantization": "int8_dynamic", "mode": "max-autotune"},
            r"mode: 'max-autotune': goes with parameter compile:",
        ),
        (
            {"quantization": "int8_dynamic", "compile": "true", "shape_padding": "true"},
            r"shape_padding: 'true': has no effect on cpu, only on cuda devices",
        ),
        ({"quantization": "int8_dynamic", "skip": "head"}, r"no torch\.nn\.Linear that 'head' fits; it has 'layer'"),
        ({"quantization": "int8_dynamic", "skip": "*"}, r"is left no torch\.nn\.Linear to quantize; it has 'layer'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, parameters: dict[str, str], message: str) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with pytest.raises(InvalidConfig, match=message):
        load(folder, backend=TorchaoBackend(), parameters=parameters)


def test_layers_that_the_kernel_of_four_bits_does_not_take_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"outputs are no multiple of 16, .*: 'head'; name them in parameter skip"):
        networks.load_quantized(networks.save_network(tmp_path), "int4_weight_only", parameters={"group_size": "64"})


def test_four_bits_beside_a_type_without_fast_kernels_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = networks.save_network(tmp_path)
    parameters = {"group_size": "64", "skip": "head"}
    networks.load_quantized(folder, "int4_weight_only", parameters={**parameters, "dtype": "bf16"}).close()
    assert "very slow" not in caplog.text
    networks.load_quantized(folder, "int4_weight_only", parameters=parameters).close()
    assert "4-bit weights are very slow on the CPU beside other types than bf16; set dtype: bf16" in caplog.text
