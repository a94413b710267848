"""torchao: layers quantized as asked for, and the same promises as torch_compile where they are compiled too."""

from pathlib import Path

import numpy as np
import pytest
from tests.backends.compiling import LINEAR_NETWORK, SEQUENCES, buckets, load, rows, save_network, sequences, serving

from preheat.backend import Model
from preheat.compilations import CompilationKind
from preheat.errors import InvalidConfig
from preheat_backends.eager import EagerBackend
from preheat_backends.torchao import TorchaoBackend

# torchao's tensors have no hash of their own for torch's cache; the backend says so once, at its import.
pytestmark = [
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore:Int8Tensor does not implement _stable_hash_for_caching"),
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
        ({}, r"quantization: not set; must be one of int8_weight_only, int8_dynamic"),
        ({"quantization": "int8_dynamic", "dtype": "fp16"}, r"dtype: 'fp16': must be one of fp32, bf16 beside 8-bit"),
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
