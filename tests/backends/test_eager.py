"""The eager backend's own promises: what it reads off a program, what it asks of a model.py, what it leaves behind."""

import gc
import sys
import textwrap
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.backends.cases import LINEAR, LinearModule, make_inputs, make_source, opened, save_linear_python, save_python
from torch.export import Dim

from preheat.backend import Dimension, Model, PartialConfig, Signature, TensorSession, TensorSpec
from preheat.errors import ExecutionFailed, InvalidArtifact, InvalidConfig
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.eager import EagerBackend

ANY = Dimension("n", minimum=0)
X = TensorSpec("x", DataType.FP32, (ANY, ANY))


def signature(*outputs: str, datatype: DataType = DataType.FP32, rank: int = 2) -> Signature:
    """One input ``x`` of two axes, and ``outputs``; it does not batch."""
    return Signature((X,), tuple(TensorSpec(name, datatype, (ANY,) * rank) for name in outputs))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose version 1 is still empty."""
    (tmp_path / "1").mkdir()
    return tmp_path


def load(folder: Path, declared: Signature) -> Model:
    return EagerBackend().load(make_source(folder), declared)


def serving(folder: Path, declared: Signature) -> AbstractContextManager[TensorSession]:
    return opened(load(folder, declared))


def run(folder: Path, declared: Signature, inputs: Tensors) -> Tensors:
    with serving(folder, declared) as session:
        return session.infer(inputs)


def zeros(rows: int = 2, columns: int = 8) -> dict[str, Array]:
    return {"x": np.zeros((rows, columns), np.float32)}


# --- Programs ----------------------------------------------------------------------------------------------------


def export(
    folder: Path, forward: Any, *args: Any, dynamic_shapes: Any = None, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Export a module of that ``forward`` as the artifact."""
    module = type("Module", (torch.nn.Module,), {"forward": forward})().eval()
    program = torch.export.export(module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    torch.export.save(program, folder / "1" / "model.pt2")


def complete(folder: Path) -> PartialConfig:
    return EagerBackend().complete(make_source(folder))


def test_bounds_and_multiples_of_axes_are_read_off_the_program(folder: Path) -> None:
    eights = Dim("eights", min=1, max=64)
    axes = {0: Dim("rows", min=3, max=5), 1: 8 * eights}
    export(folder, lambda _, x: x.reshape(x.shape[0], -1, 8), torch.zeros(4, 32), dynamic_shapes=(axes,))
    partial = complete(folder)
    rows, columns = partial.inputs[0].shape
    assert (rows.minimum, rows.maximum, rows.multiple_of) == (3, 5, 1)
    assert (columns.minimum, columns.maximum, columns.multiple_of) == (8, 512, 8)
    assert partial.outputs[0].shape[0] == rows
    assert partial.outputs[0].shape[2] == Dimension.fixed(8)


def test_an_axis_that_was_given_no_bounds_has_none_but_one_row(folder: Path) -> None:
    axes = {0: Dim.AUTO, 1: Dim.AUTO}
    export(folder, lambda _, x: (torch.nonzero(x), x[:, ::2]), torch.ones(2, 6), dynamic_shapes=(axes,))
    partial = complete(folder)
    for axis in partial.inputs[0].shape:
        assert (axis.minimum, axis.maximum) == (1, None)
    found, half = (spec.shape for spec in partial.outputs)
    assert (found[0].minimum, found[0].maximum) == (0, None)
    assert (half[1].minimum, half[1].maximum) == (0, None)
    assert len({axis.name for axis in (*partial.inputs[0].shape, found[0], half[1])}) == 4
    answer = run(folder, signature("OUTPUT__1"), {"x": np.ones((1, 3), np.float32)})
    assert answer["OUTPUT__1"].shape == (1, 2)


def test_positional_and_keyword_inputs_go_where_they_belong(folder: Path) -> None:
    def forward(_: Any, input: torch.Tensor, sum: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return input - sum * mask

    export(folder, forward, torch.zeros(3), torch.zeros(3), kwargs={"mask": torch.zeros(3)})
    specs = complete(folder).inputs
    assert [spec.name for spec in specs] == ["input", "sum", "mask"]
    inputs = {name: np.full(3, value, np.float32) for name, value in (("mask", 2), ("sum", 3), ("input", 10))}
    declared = Signature(specs[::-1], (TensorSpec("y", DataType.FP32, (ANY,)),))
    assert run(folder, declared, inputs)["y"].tolist() == [4, 4, 4]


def test_outputs_of_a_tuple_are_numbered_and_may_be_named_by_the_configuration(folder: Path) -> None:
    export(folder, lambda _, x: (x + 1, x + 2), torch.zeros(2, 8))
    assert [spec.name for spec in complete(folder).outputs] == ["OUTPUT__0", "OUTPUT__1"]
    one, two = run(folder, signature("one", "two"), zeros()).values()
    assert (one[0, 0], two[0, 0]) == (1, 2)
    assert list(run(folder, signature("OUTPUT__1"), zeros())) == ["OUTPUT__1"]


def test_outputs_of_a_dictionary_keep_their_names(folder: Path) -> None:
    export(folder, lambda _, x: {"two": x + 2, "one": x + 1}, torch.zeros(2, 8))
    assert {spec.name for spec in complete(folder).outputs} == {"one", "two"}
    outputs = run(folder, signature("one", "two"), zeros())
    assert (outputs["one"][0, 0], outputs["two"][0, 0]) == (1, 2)
    with pytest.raises(InvalidConfig, match="output 'uno': no such output"):
        load(folder, signature("uno", "dos"))


@pytest.mark.parametrize(
    ("forward", "args", "message"),
    [
        (lambda _, x: x[0] + x[1], ([torch.zeros(2), torch.zeros(2)],), "takes nested inputs; each must be one tensor"),
        (lambda _, x, n: x * n, (torch.zeros(2), 3), "input 'n' is no tensor"),
        (lambda _, x: (x, None), (torch.zeros(2),), "output 'OUTPUT__1' is no tensor"),
        (lambda _, x: (x, (x + 1, x + 2)), (torch.zeros(2),), "returns tuple with something nested in it"),
        (lambda _, x: x + 1j, (torch.zeros(2),), r"output 'OUTPUT__0' is torch\.complex64, which the protocol"),
    ],
    ids=["nested-input", "number", "none", "nested-output", "complex"],
)
def test_a_program_that_is_not_of_tensors_is_refused(
    folder: Path, forward: Any, args: tuple[Any, ...], message: str
) -> None:
    export(folder, forward, *args)
    with pytest.raises(InvalidArtifact, match=rf"model\.pt2: .*{message}"):
        complete(folder)


def test_a_program_that_writes_to_its_input_gets_a_copy(folder: Path) -> None:
    export(folder, lambda _, x: x.add_(1), torch.zeros(2, 8))
    inputs = zeros()
    assert run(folder, signature("y"), inputs)["y"][0, 0] == 1
    assert inputs["x"][0, 0] == 0


def test_a_program_that_returns_its_weights_returns_copies(folder: Path) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, 8))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.weight, x + 1

    torch.export.save(torch.export.export(Module(), (torch.zeros(2, 8),)), folder / "1" / "model.pt2")
    with serving(folder, signature("weight", "y")) as session:
        session.infer(zeros())["weight"][...] = 7
        assert session.infer(zeros())["weight"].max() == 0


def test_a_program_with_damage_inside_is_refused_by_its_path(folder: Path) -> None:
    export(folder, lambda _, x: x + 1, torch.zeros(2, 8))
    path = folder / "1" / "model.pt2"
    path.write_bytes(path.read_bytes().replace(b'"graph_module"', b'"graph_nodule"'))
    with pytest.raises(InvalidArtifact, match=r"model\.pt2: torch\.export cannot load it: \w+"):
        complete(folder)


# --- model.py ----------------------------------------------------------------------------------------------------

MODULE = """
import torch

class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, x):
        FORWARD

def build_model():
    return Module()
"""


def write(folder: Path, forward: str) -> None:
    (folder / "1" / "model.py").write_text(MODULE.replace("FORWARD", forward))


def imported_models() -> set[str]:
    return {name for name in sys.modules if name.startswith("preheat_model_")}


def test_a_model_py_says_nothing_until_it_is_run(folder: Path) -> None:
    save_python(folder / "1", "raise RuntimeError('imported')")
    assert complete(folder) == PartialConfig()


@pytest.mark.parametrize("forward", ["return x, x + 1", "return [x, x + 1]", "return {'b': x + 1, 'c': 0, 'a': x}"])
def test_forward_returns_outputs_in_order_or_by_name(folder: Path, forward: str) -> None:
    write(folder, forward)
    outputs = run(folder, signature("a", "b"), zeros())
    assert (outputs["a"][0, 0], outputs["b"][0, 0]) == (0, 1)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return x, x, x", "forward returned 3 values; the outputs are 'a', 'b'"),
        ("return x", "forward returned 1 values; the outputs are 'a', 'b'"),
        ("return {'a': x, 'c': x}", "forward returned 'a', 'c'; output 'b' is not among them"),
        ("return x, 3", "forward returned int for output 'b', not a tensor"),
        ("return 3", "forward returned int, not a tensor, tuple, list or dict"),
        ("raise ValueError('no\\nsuch luck')", "ValueError: no$"),
        ("raise MemoryError", "MemoryError$"),
        ("return x, x.to_sparse()", r"\w+: "),
        ("return x, x.to(torch.float8_e4m3fn)", r"\w+: "),
        ("return x @ x, x", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_forward_should_not_do_fails_the_batch_and_says_so(folder: Path, forward: str, message: str) -> None:
    write(folder, forward)
    with pytest.raises(ExecutionFailed, match=f"^eager: {message}"):
        run(folder, signature("a", "b"), zeros())


def test_forward_runs_in_eval_and_inference_mode(folder: Path) -> None:
    write(folder, "assert torch.is_inference_mode_enabled(); return self.dropout(x), self.layer(x)")
    outputs = run(folder, signature("a", "b"), {"x": np.ones((2, 8), np.float32)})
    assert outputs["a"].min() == 1


def test_a_module_that_writes_to_its_input_gets_a_copy(folder: Path) -> None:
    write(folder, "return x.add_(1)")
    inputs = zeros()
    inputs["x"].setflags(write=False)
    assert run(folder, signature("y"), inputs)["y"][0, 0] == 1
    assert inputs["x"][0, 0] == 0


def test_a_module_that_returns_its_weights_returns_copies(folder: Path) -> None:
    write(folder, "return self.layer.weight")
    with serving(folder, signature("y")) as session:
        before = session.infer(zeros())["y"].copy()
        session.infer(zeros())["y"][...] = 7
        np.testing.assert_array_equal(session.infer(zeros())["y"], before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def build_model(:", "importing it raised SyntaxError"),
        ("import no_such_package", "importing it raised ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1", r"defines no build_model\(\); it must return the torch.nn.Module to serve"),
        ("build_model = 3", r"defines no build_model\(\)"),
        ("def build_model():\n    raise ValueError('no')", r"build_model\(\) raised ValueError: no"),
        ("def build_model():\n    return 3", r"build_model\(\) returned int, not a torch.nn.Module"),
    ],
)
def test_a_model_py_that_builds_no_module_is_refused(folder: Path, source: str, message: str) -> None:
    (folder / "1" / "model.py").write_text(source)
    with pytest.raises(InvalidArtifact, match=rf"1/model\.py: {message}"):
        load(folder, signature("y"))
    assert imported_models() == set()


META = """
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            self.register_buffer("scale", torch.ones(1), persistent=False)

        def forward(self, x):
            return x * self.scale

    def build_model():
        with torch.device("meta"):
            return Module()
"""


def test_weights_that_nothing_gave_a_value_are_refused_by_name(folder: Path) -> None:
    save_python(folder / "1", META)
    some = r"'layers\.0\.weight', 'layers\.0\.bias', .* and 2 more"
    with pytest.raises(InvalidArtifact, match=rf"model\.safetensors is missing, and build_model\(\) leaves .* {some}"):
        load(folder, signature("y"))


def test_a_buffer_that_is_in_no_file_is_refused_by_name(folder: Path) -> None:
    save_python(folder / "1", META)
    shapes = {"weight": (4, 4), "bias": (4,)}
    weights = {f"layers.{index}.{name}": torch.zeros(shape) for index in range(3) for name, shape in shapes.items()}
    save_file(weights, folder / "1" / "model.safetensors")
    with pytest.raises(InvalidArtifact, match=r"model\.safetensors has no values for 'scale'"):
        load(folder, signature("y"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"layer.weight": torch.zeros(3, 4)}, 'Missing key.* "layer.bias"'),
        (
            {"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3), "z": torch.zeros(1)},
            'Unexpected key.* "z"',
        ),
        ({"layer.weight": torch.zeros(3, 5), "layer.bias": torch.zeros(3)}, "size mismatch for layer.weight"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_the_module_are_refused_by_name(
    folder: Path, weights: dict[str, torch.Tensor], message: str
) -> None:
    save_linear_python(folder / "1")
    save_file(weights, folder / "1" / "model.safetensors")
    with pytest.raises(InvalidArtifact, match=rf"model\.safetensors: .*{message}"):
        load(folder, LINEAR)


def test_weights_of_a_foreign_kind_are_named_for_what_they_are(folder: Path) -> None:
    save_linear_python(folder / "1")
    torch.save(LinearModule().state_dict(), folder / "1" / "model.safetensors")
    with pytest.raises(
        InvalidArtifact, match=r"model\.safetensors is a torch\.save checkpoint; the backend 'eager' takes"
    ):
        load(folder, LINEAR)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_weights_cut_short_are_refused_by_their_path(folder: Path, share: float) -> None:
    save_linear_python(folder / "1")
    path = folder / "1" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InvalidArtifact, match=r"1/model\.safetensors"):
        load(folder, LINEAR)


def test_rewriting_the_weights_does_not_change_a_loaded_model(folder: Path) -> None:
    save_linear_python(folder / "1")
    path = folder / "1" / "model.safetensors"
    with serving(folder, LINEAR) as session:
        before = session.infer(make_inputs(LINEAR, 2))
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        np.testing.assert_array_equal(session.infer(make_inputs(LINEAR, 2))["y"], before["y"])


def test_an_edit_within_the_same_second_and_of_the_same_size_is_seen(folder: Path) -> None:
    for value in ("1", "2"):
        write(folder, f"return x + {value}")
        assert run(folder, signature("y"), zeros())["y"][0, 0] == float(value)
    assert [path.name for path in (folder / "1").iterdir()] == ["model.py"]


def test_a_model_py_finds_itself_in_sys_modules_while_it_is_loaded(folder: Path) -> None:
    source = """
        from __future__ import annotations
        import dataclasses, pickle, torch

        @dataclasses.dataclass
        class Scale:
            factor: float
            kind: dataclasses.InitVar[int] = 0

        class Module(torch.nn.Module):
            def forward(self, x):
                return x + pickle.loads(pickle.dumps(Scale(2.0))).factor

        def build_model():
            return Module()
    """
    (folder / "1" / "model.py").write_text(textwrap.dedent(source))
    path = list(sys.path)
    with serving(folder, signature("y")) as session:
        with serving(folder, signature("y")):
            assert len(imported_models()) == 2
        assert session.infer(zeros())["y"][0, 0] == 2
    assert imported_models() == set()
    assert sys.path == path


# --- Both --------------------------------------------------------------------------------------------------------


def test_bytes_are_refused_at_load(folder: Path) -> None:
    write(folder, "return x")
    with pytest.raises(InvalidConfig, match=r"config\.pbtxt: tensor 'y': BYTES: torch has no such tensors"):
        load(folder, signature("y", datatype=DataType.BYTES))


def test_closing_frees_the_weights_whoever_still_holds_the_model(folder: Path) -> None:
    write(folder, "return x")
    model = load(folder, signature("y"))
    with opened(model) as session:
        session.infer(zeros())
        (name,) = imported_models()
        (weights,) = (weakref.ref(item) for item in gc.get_objects() if type(item).__module__ == name)
    gc.collect()
    assert weights() is None


def test_each_session_computes_with_its_own_number_of_threads(folder: Path) -> None:
    write(folder, "return torch.full((1, 1), torch.get_num_threads(), dtype=torch.float32)")
    together = threading.Barrier(3, timeout=30)

    def serve(threads: int) -> float:
        with opened(load(folder, signature("y")), threads=threads) as session:
            together.wait()
            seen = float(session.infer(zeros())["y"][0, 0])
            together.wait()  # lest a thread of the pool serves twice
            return seen

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(serve, [1, 2, 3])) == [1, 2, 3]
