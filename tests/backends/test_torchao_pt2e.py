"""torchao's graphs in 8-bit integers: near the network, in kernels of integers, for every shape; or refused by name."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.backends.cases import make_source
from tests.backends.compiling import Instances, buckets, serving
from tests.backends.torchao_networks import (
    ROWS,
    SEQUENCES,
    WIDTH,
    decibels,
    expected,
    load_quantized,
    make_module,
    rows,
    save_network,
    sequences,
)

from preheat.backend import Buckets, Dimension, Signature, TensorSpec
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat.tensors import DataType
from preheat_backends.torch_programs.dynamic_shapes import dynamic_shapes, example_inputs
from preheat_backends.torch_programs.program import Arguments
from preheat_backends.torchao import TorchaoBackend
from preheat_backends.torchao.kernels import saturates
from preheat_backends.torchao.layers import EVERYTHING, CannotQuantize

pytestmark = [
    pytest.mark.compiles,
    # Of torch's own, about its own code, when it packs weights.
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
]

COMPILED = {"compile": "true", "freezing": "true"}
SAMPLES = {"x": torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))}
# An answer of a network of three layers in 8-bit integers; that of unquantized weights would be above 100.
NEAR_DECIBELS = 25.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with samples."""
    folder = save_network(tmp_path_factory.mktemp("network"))
    save_file(SAMPLES, folder / "1" / "calibration.safetensors")
    return folder


@pytest.fixture
def own_network(network: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(network, tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the static network leaves what was compiled of it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def static(network: Path, cache: Path) -> Iterator[Instances]:
    parameters = {**COMPILED, "fullgraph": "true"}
    model = load_quantized(network, "pt2e_static", parameters=parameters, buckets=buckets(8), cache_path=cache)
    with serving(model) as instances:
        instances.infer(rows(8))
        yield instances


@pytest.fixture(scope="module")
def dynamic(network: Path) -> Iterator[Instances]:
    with serving(load_quantized(network, "pt2e_dynamic", parameters=COMPILED, buckets=buckets(8))) as instances:
        yield instances


def test_static_answers_are_near_those_of_the_network(static: Instances) -> None:
    answer = static.infer(rows(8))["y"]
    assert NEAR_DECIBELS < decibels(answer, expected(rows(8))) < 80
    assert decibels(answer, static.infer(rows(8), eagerly=True)["y"]) > NEAR_DECIBELS


def test_dynamic_answers_are_near_those_of_the_network(dynamic: Instances) -> None:
    assert NEAR_DECIBELS < decibels(dynamic.infer(rows(8))["y"], expected(rows(8))) < 80


def test_kernels_of_integers_are_exact_at_the_largest_values(static: Instances) -> None:
    """Where the kernels add in 16 bits, full weights would give a fraction of the answer."""
    inputs = {"x": np.full((8, WIDTH), 4.0, np.float32) * np.sign(rows(1)["x"])}
    compiled, by_operators = static.infer(inputs)["y"], static.infer(inputs, eagerly=True)["y"]
    assert decibels(compiled, by_operators) > 40


def test_a_row_answers_the_same_whatever_it_shares_a_batch_with(static: Instances) -> None:
    alone, together = rows(8), rows(8)
    together["x"][1:] *= 50
    first = static.infer(alone)["y"][0]
    np.testing.assert_allclose(static.infer(together)["y"][0], first, atol=1e-6)


def test_only_dynamic_says_that_rows_depend_on_each_other(network: Path) -> None:
    for quantization, independent in (("pt2e_static", True), ("pt2e_dynamic", False), ("int8_dynamic", True)):
        parameters = {"quantization": quantization, **COMPILED}
        completed = TorchaoBackend().complete(make_source(network, parameters=parameters))
        assert completed.row_independent is independent


def test_dynamic_rows_do_depend_on_each_other(dynamic: Instances) -> None:
    alone, together = rows(8), rows(8)
    together["x"][1:] *= 50
    first = dynamic.infer(alone)["y"][0]
    assert np.abs(dynamic.infer(together)["y"][0] - first).max() > 1e-3


def test_layers_become_kernels_of_integers(static: Instances, cache: Path) -> None:
    """Without freezing, or on another path through inductor, they would be kernels of floating point."""
    assert [each.what for each in static.stated] == ["x[8,64]"]
    wrappers = "".join(path.read_text() for path in cache.rglob("*.py"))
    assert wrappers.count("= torch.ops.onednn.qlinear_pointwise") == 3


def test_sizes_that_vary_are_symbols_of_one_graph(own_network: Path) -> None:
    samples = SAMPLES["x"].reshape(16, 4, WIDTH)
    save_file({"x": samples}, own_network / "1" / "calibration.safetensors")
    parameters = {**COMPILED, "dynamic": "true"}
    with serving(load_quantized(own_network, "pt2e_static", SEQUENCES, parameters)) as instances:
        for count, length in ((2, 5), (7, 16), (2, 3)):
            answer = instances.infer(sequences(count, length))["y"]
            assert decibels(answer, expected(sequences(count, length))) > NEAR_DECIBELS
        assert len(instances.take()) == 1


def quantized_layers(*, only: Sequence[str] = EVERYTHING, skip: Sequence[str] = ()) -> int:
    from preheat_backends.torchao.pt2e import count_quantized, quantize_pt2e

    arguments = Arguments(keyword=example_inputs(ROWS, Buckets()))
    calibration = [Arguments(keyword=SAMPLES)]
    graph = quantize_pt2e(make_module(), arguments, dynamic_shapes(ROWS), calibration=calibration, only=only, skip=skip)
    quantized = graph(x=SAMPLES["x"])
    assert decibels(quantized.numpy(), expected({"x": SAMPLES["x"].numpy()})) > NEAR_DECIBELS
    return count_quantized(graph)


def test_layers_are_chosen_by_patterns_of_their_names() -> None:
    assert quantized_layers() == 3
    assert quantized_layers(skip=["head"]) == 2
    assert quantized_layers(only=["up", "down"]) == 2
    assert quantized_layers(only=["*"], skip=["up", "d*"]) == 1
    with pytest.raises(
        CannotQuantize, match=r"has no torch\.nn\.Linear, Conv1d or Conv2d that 'tail' fits; it has 'up'"
    ):
        quantized_layers(skip=["tail"])


def test_weights_keep_a_bit_free_where_kernels_would_overflow_and_only_there() -> None:
    from preheat_backends.torchao.pt2e import quantize_pt2e

    arguments = Arguments(keyword=example_inputs(ROWS, Buckets()))
    for narrow, most in ((True, 64), (False, 128), (None, 64 if saturates() else 128)):
        graph = quantize_pt2e(make_module(), arguments, dynamic_shapes(ROWS), calibration=None, narrow_weights=narrow)
        integers = [each for each in graph.buffers() if each.dtype is torch.int8]
        assert max(int(each.int().abs().max()) for each in integers) in (most - 1, most)
        # The weights as they were are let go of.
        assert not [name for name, _ in graph.named_parameters() if name.endswith("weight")]


def test_a_graph_can_be_exported_again_with_the_same_sizes_varying() -> None:
    """As for a package that is compiled ahead of time."""
    from preheat_backends.torchao.pt2e import quantize_pt2e

    examples, shapes = example_inputs(SEQUENCES, Buckets()), dynamic_shapes(SEQUENCES)
    graph = quantize_pt2e(make_module(), Arguments(keyword=examples), shapes, calibration=None)
    inputs = sequences(3, 7)
    with torch.no_grad():
        again = torch.export.export(graph, (), examples, dynamic_shapes=shapes).module()
        answer = again(x=torch.from_numpy(inputs["x"])).numpy()
    assert decibels(answer, expected(inputs)) > NEAR_DECIBELS


def test_other_models_are_compiled_as_ever() -> None:
    """Importing torchao's quantizer sets a pass of inductor's, which would change the key of all that is cached."""
    from preheat_backends.torchao import pt2e

    assert pt2e.INDUCTOR_OPTIONS
    assert torch._inductor.config.pre_grad_custom_pass is None


def test_convolutions_are_quantized_too() -> None:
    from preheat_backends.torchao.pt2e import count_quantized, quantize_pt2e

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU6()).eval()
    pictures = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = quantize_pt2e(
        network, Arguments((pictures,)), ({0: torch.export.Dim("n", max=8)},), calibration=[Arguments((pictures,))]
    )
    assert count_quantized(graph) == 1
    with torch.no_grad():
        assert decibels(graph(pictures).numpy(), network(pictures).numpy()) > NEAR_DECIBELS


RENAMED = """
class Renamed(torch.nn.Sequential):
    def forward(self, ids):
        return super().forward(ids)
"""


def _save(**tensors: torch.Tensor) -> Callable[[Path], object]:
    return lambda path: save_file(tensors, path)


CALIBRATIONS = {
    "missing": (lambda path: path.unlink(), r"calibration\.safetensors: no such file; .*\.save_file\(\{'x': samples"),
    "cut-short": (
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        r"calibration\.safetensors(: safetensors cannot read it| is a safetensors file that is cut short)",
    ),
    "text": (
        lambda path: path.write_text("soon\n"),
        r"calibration\.safetensors is a text file; .* takes a safetensors",
    ),
    "other-names": (_save(y=torch.zeros(2, WIDTH)), r"has no samples of input 'x'; the inputs are 'x'"),
    "further-names": (
        _save(x=torch.zeros(2, WIDTH), z=torch.zeros(2)),
        r"has samples of 'z'; the inputs are 'x'",
    ),
    "other-shape": (_save(x=torch.zeros(2, 8)), r"'x' is \[2, 8\], but must be \[samples, 64\]"),
    "one-sample": (_save(x=torch.zeros(WIDTH)), r"'x' is \[64\], but must be \[samples, 64\]"),
    "other-type": (_save(x=torch.zeros(2, WIDTH, dtype=torch.int64)), r"'x' is torch.int64, but the input is FP32"),
    "none": (_save(x=torch.zeros(0, WIDTH)), r"the same number of samples, at least 1; 'x' has 0"),
    "not-finite": (_save(x=torch.full((2, WIDTH), torch.nan)), r"'x' has values that are not finite"),
}


@pytest.mark.parametrize(("change", "message"), CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_samples_that_do_not_serve_are_refused(
    own_network: Path, change: Callable[[Path], object], message: str
) -> None:
    change(own_network / "1" / "calibration.safetensors")
    with pytest.raises(InvalidArtifact, match=message):
        load_quantized(own_network, "pt2e_static", parameters=COMPILED)


def test_samples_of_two_inputs_must_be_as_many_and_as_long(own_network: Path) -> None:
    specs = (dataclasses.replace(SEQUENCES.inputs[0], name="a"), dataclasses.replace(SEQUENCES.inputs[0], name="b"))
    two = dataclasses.replace(SEQUENCES, inputs=specs)
    path = own_network / "1" / "calibration.safetensors"
    for sizes, message in (
        (((4, 3), (4, 5)), r"'b' is \[4, 5, 64\], but must be \[samples, sequence\(1\.\.16\), 64\]"),
        (((4, 3), (5, 3)), r"same number of samples, at least 1; 'a' has 4, 'b' has 5"),
    ):
        save_file({name: torch.zeros(*size, WIDTH) for name, size in zip("ab", sizes, strict=True)}, path)
        with pytest.raises(InvalidArtifact, match=message):
            load_quantized(own_network, "pt2e_static", two, COMPILED, buckets=buckets(1, sizes={"sequence": (4,)}))


def test_samples_that_the_network_fails_on_are_refused(tmp_path: Path) -> None:
    """As token ids beyond the vocabulary are."""
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    layers = "torch.nn.Embedding(4, 64), torch.nn.Linear(64, 4)"
    (folder / "model.py").write_text(f"import torch\ndef build_model():\n    return Renamed({layers})\n" + RENAMED)
    save_file({"ids": torch.tensor([[0, 1], [2, 4]])}, folder / "calibration.safetensors")
    ids = TensorSpec("ids", DataType.INT64, (Dimension.fixed(2),))
    signature = Signature((ids,), SEQUENCES.outputs, max_batch_size=8)
    with pytest.raises(InvalidConfig, match=r"model\.py fails on the samples .* IndexError: index out of range"):
        load_quantized(tmp_path / "m", "pt2e_static", signature, COMPILED)


REFUSED = {
    "not-compiled": ("pt2e_static", {}, r"quantization: 'pt2e_static': needs compile: true and freezing: true"),
    "not-frozen": ("pt2e_dynamic", {"compile": "true"}, r"quantization: 'pt2e_dynamic': needs compile: true and fr"),
    "bf16": ("pt2e_static", {**COMPILED, "dtype": "bf16"}, r"dtype: 'bf16': must be fp32"),
    "calibration": (
        "pt2e_dynamic",
        {**COMPILED, "calibration": "x.safetensors"},
        r"calibration: 'x\.safetensors': goes with parameter quantization: pt2e_static only",
    ),
    "elsewhere": (
        "pt2e_static",
        {**COMPILED, "calibration": "../x"},
        r"calibration: '\.\./x': must be a file's name in the version's folder",
    ),
    "no-layer-of-that-name": (
        "pt2e_static",
        {**COMPILED, "only": "tail"},
        r"has no torch\.nn\.Linear, Conv1d or Conv2d that 'tail' fits; it has 'up', 'down', 'head'",
    ),
    "no-layer-left": ("pt2e_dynamic", {**COMPILED, "skip": "*"}, r"is left no torch\.nn\.Linear, Conv1d or Conv2d"),
    "group-size": (
        "pt2e_dynamic",
        {**COMPILED, "group_size": "32"},
        r"group_size: '32': goes with parameter quantization: int4_weight_only only",
    ),
}


@pytest.mark.parametrize(("quantization", "parameters", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_by_name(
    network: Path, quantization: str, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        load_quantized(network, quantization, parameters=parameters)


def test_a_network_whose_sizes_cannot_vary_as_configured_is_refused(own_network: Path) -> None:
    source = (own_network / "1" / "model.py").read_text()
    # As many rows as it is traced with: what fits them alone is found out.
    (own_network / "1" / "model.py").write_text(
        source.replace("hidden = self", "x = x.reshape(3, 64)\n        hidden = self")
    )
    with pytest.raises(InvalidConfig, match=r"cannot be made a graph by torch\.export: .*axis_0"):
        load_quantized(own_network, "pt2e_static", parameters=COMPILED)


def test_optional_inputs_are_refused(network: Path) -> None:
    optional = dataclasses.replace(ROWS, inputs=(dataclasses.replace(ROWS.inputs[0], optional=True),))
    with pytest.raises(InvalidConfig, match=r"a graph of which no input can be optional, as 'x' is"):
        load_quantized(network, "pt2e_dynamic", optional, COMPILED)
