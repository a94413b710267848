"""The TorchScript backend's own promises: how tensors find their arguments, when it is hot, and what it refuses."""

import logging
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.backends.cases import (
    FOUR,
    LINEAR,
    LinearModule,
    linear_reference,
    make_inputs,
    make_source,
    open_session,
    opened,
    save_linear_script,
    save_script,
)

from preheat.backend import Model, PartialConfig, Signature, TensorSpec
from preheat.compilations import Compilation, CompilationKind, recording
from preheat.errors import ExecutionFailed, InvalidArtifact, InvalidConfig
from preheat.tensors import DataType, Tensors
from preheat_backends.torchscript import TorchScriptBackend


class Pair(NamedTuple):
    total: torch.Tensor
    difference: torch.Tensor


class Two(torch.nn.Module):
    """Two arguments, the second with a default, and a tuple of two."""

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if b is None:
            return a + 1, a - 1
        return a + b, a - b


class Named(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Pair:
        return Pair(a + b, a - b)


class Listed(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return [a + b, a - b]


class Keyed(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"difference": a - b, "total": a + b}


class Scaled(torch.nn.Module):
    """An argument that is no tensor, with a default."""

    def forward(self, a: torch.Tensor, factor: int = 3) -> torch.Tensor:
        return a * factor


class Counting(torch.nn.Module):
    def forward(self, a: torch.Tensor, factor: int) -> torch.Tensor:
        return a * factor


class Sized(torch.nn.Module):
    def forward(self, a: torch.Tensor) -> int:
        return len(a)


class Nested(torch.nn.Module):
    def forward(self, a: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return a, (a, a)


class Sizes(torch.nn.Module):
    """What is no tensor shows only when it runs."""

    def forward(self, a: torch.Tensor) -> list[int]:
        return [len(a)]


class Weighted(torch.nn.Module):
    """Writes to its input, and answers with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 4))

    def forward(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a.add_(1), self.weight


def script(folder: Path, module: torch.nn.Module) -> None:
    save_script(folder / "1", lambda: torch.jit.script(module.eval()))


def signature(inputs: list[str], outputs: list[str], *, optional: tuple[str, ...] = ()) -> Signature:
    """Tensors of four FP32, in batches."""
    specs = [TensorSpec(name, DataType.FP32, (FOUR,), optional=name in optional) for name in (*inputs, *outputs)]
    return Signature(tuple(specs[: len(inputs)]), tuple(specs[len(inputs) :]), 8)


def load(folder: Path, declared: Signature, **settings: Any) -> Model:
    return TorchScriptBackend().load(make_source(folder, **settings), declared)


def run(folder: Path, declared: Signature, inputs: Tensors, **parameters: str) -> Tensors:
    with opened(load(folder, declared, parameters=parameters)) as session:
        return session.infer(inputs)


def rows(value: float) -> np.ndarray[Any, Any]:
    return np.full((2, 4), value, np.float32)


# --- Names -------------------------------------------------------------------------------------------------------


def test_an_archive_tells_nothing_of_its_signature(folder: Path) -> None:
    save_linear_script(folder / "1")
    assert TorchScriptBackend().complete(make_source(folder)) == PartialConfig()


@pytest.mark.parametrize(
    ("module", "inputs", "outputs"),
    [
        (Two(), ["a", "b"], ["total", "difference"]),
        (Two(), ["b", "a"], ["total", "difference"]),
        (Two(), ["INPUT__0", "INPUT__1"], ["OUTPUT__0", "OUTPUT__1"]),
        (Two(), ["second__1", "first__0"], ["difference__1", "total__0"]),
        (Named(), ["a", "b"], ["total", "difference"]),
        (Listed(), ["a", "b"], ["total", "difference"]),
        (Listed(), ["INPUT__0", "INPUT__1"], ["OUTPUT__0", "OUTPUT__1"]),
        (Keyed(), ["a", "b"], ["total", "difference"]),
    ],
    ids=["names", "order", "places", "places-in-order", "named-tuple", "list", "list-places", "dictionary"],
)
def test_tensors_find_their_places_by_name_or_by_number(
    folder: Path, module: torch.nn.Module, inputs: list[str], outputs: list[str]
) -> None:
    script(folder, module)
    values = {"a": 5, "b": 3, "INPUT__0": 5, "INPUT__1": 3, "first__0": 5, "second__1": 3}
    answer = run(folder, signature(inputs, outputs), {name: rows(values[name]) for name in inputs})
    assert {name: array[0, 0] for name, array in answer.items()} == {
        name: 2 if "difference" in name or name.endswith("1") else 8 for name in outputs
    }


def test_of_numbered_outputs_some_may_be_left_out(folder: Path) -> None:
    script(folder, Two())
    answer = run(folder, signature(["a", "b"], ["OUTPUT__1"]), {"a": rows(5), "b": rows(3)})
    assert {name: array[0, 0] for name, array in answer.items()} == {"OUTPUT__1": 2}


def test_arguments_with_defaults_need_not_be_given(folder: Path) -> None:
    script(folder, Two())
    with opened(load(folder, signature(["a", "b"], ["t", "d"], optional=("b",)))) as session:
        assert session.infer({"a": rows(5)})["t"][0, 0] == 6
        assert session.infer({"a": rows(5), "b": rows(3)})["t"][0, 0] == 8
    script(folder, Scaled())
    assert run(folder, signature(["a"], ["y"]), {"a": rows(5)})["y"][0, 0] == 15


# --- Running -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{"freeze": "false"}, {"optimize_for_inference": "true"}], ids=str)
def test_it_answers_alike_however_it_is_optimized(folder: Path, parameters: dict[str, str]) -> None:
    save_linear_script(folder / "1")
    with opened(load(folder, LINEAR, parameters=parameters)) as session:
        for count in (2, 2, 2, 5, 1):
            inputs = make_inputs(LINEAR, count)
            np.testing.assert_allclose(session.infer(inputs)["y"], linear_reference(inputs)["y"], rtol=1e-5)


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_an_archive_that_was_frozen_before_is_served(folder: Path, freeze: str) -> None:
    module = LinearModule().eval()
    save_script(folder / "1", lambda: torch.jit.freeze(torch.jit.trace(module, torch.zeros(2, 4))))  # type: ignore[no-untyped-call]
    inputs = make_inputs(LINEAR, 2)
    answer = run(folder, LINEAR, inputs, freeze=freeze)["y"]
    np.testing.assert_allclose(answer, linear_reference(inputs)["y"], rtol=1e-5)


def test_two_runs_are_stated_and_then_it_is_hot_on_any_thread_at_any_shape(
    folder: Path, stated: list[Compilation]
) -> None:
    save_linear_script(folder / "1")
    model = load(folder, LINEAR, instances=2)
    assert not model.specializes_on_shape
    with opened(model) as session:
        for count in (2, 2, 2, 5, 1):
            session.infer(make_inputs(LINEAR, count))
        assert [(each.kind, each.what) for each in stated] == [
            (CompilationKind.GRAPH, f"x[2,4]: run {number} of 2 that TorchScript takes to optimize")
            for number in (1, 2)
        ]
        later: list[Compilation] = []

        def serve() -> None:
            with recording(later.append):
                open_session(model, 1).infer(make_inputs(LINEAR, 3))

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        assert later == []


def test_it_says_in_the_log_that_torchscript_is_deprecated_and_warns_nobody(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_linear_script(folder / "1")
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        load(folder, LINEAR).close()
    assert warned == []
    assert "m: TorchScript is deprecated by PyTorch" in caplog.text
    assert "torch.export, and serve it with the backend eager, torch_compile or aot_inductor" in caplog.text


def test_neither_inputs_nor_weights_are_anyones_to_write_to(folder: Path) -> None:
    script(folder, Weighted())
    declared = signature(["a"], ["y", "weight"])
    a = rows(5)
    a.setflags(write=False)
    with opened(load(folder, declared)) as session:
        for _ in range(4):
            answer = session.infer({"a": a})
            assert (answer["y"][0, 0], answer["weight"][0, 0], a[0, 0]) == (6, 1, 5)
            answer["weight"][...] = 7


def test_a_failed_run_tells_the_operators_own_reason(folder: Path) -> None:
    """Which TorchScript puts behind a page of the archive's code."""
    save_linear_script(folder / "1")
    with pytest.raises(ExecutionFailed, match=r"^torchscript: RuntimeError: mat1 and mat2 shapes cannot be multiplied"):
        run(folder, LINEAR, {"x": np.ones((2, 8), np.float32)})


# --- Refusals ----------------------------------------------------------------------------------------------------

AB, TD = ["a", "b"], ["total", "difference"]


@pytest.mark.parametrize(
    ("module", "declared", "fragments"),
    [
        (Two(), signature(["a", "c"], TD), ("input 'c': no such argument", "b: Optional[Tensor]", "INPUT__0")),
        (Two(), signature(["x__0", "y__2"], TD), ("input 'x__0': no such argument", "by their places")),
        (Two(), signature(["x__0", "y__0"], TD), ("input 'x__0': no such argument",)),
        (Named(), signature(["a"], TD), ("input 'b': not declared", "of the archive in", "a: Tensor, b: Tensor")),
        (Named(), signature(AB, TD, optional=("b",)), ("input 'b': cannot be optional", "no default")),
        (Counting(), signature(["a"], ["y"]), ("input 'factor': not declared", "factor: int")),
        (Scaled(), signature(["a", "factor"], ["y"]), ("input 'factor': int is no tensor",)),
        (Two(), signature(AB, ["total"]), ("outputs 'total'", "returns 2 values")),
        (Two(), signature(AB, [*TD, "more"]), ("outputs 'total', 'difference', 'more'", "returns 2 values")),
        (Two(), signature(AB, ["OUTPUT__2"]), ("outputs 'OUTPUT__2'", "model.pt returns 2 values")),
    ],
    ids=[
        "name", "place", "place-twice", "undeclared", "optional", "number", "number-given", "few-outputs",
        "many-outputs", "output-place",
    ],
)  # fmt: skip
def test_a_signature_that_does_not_fit_is_refused(
    folder: Path, module: torch.nn.Module, declared: Signature, fragments: tuple[str, ...]
) -> None:
    script(folder, module)
    with pytest.raises(InvalidConfig) as raised:
        load(folder, declared)
    assert str(raised.value).startswith(str(folder / "config.pbtxt"))
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("module", "fragments"),
    [
        (Sized(), ("model.pt: forward returns int", "a tensor, a tuple or list of tensors, or a dictionary")),
        (Nested(), ("model.pt: forward returns Tuple[Tensor, Tuple[Tensor, Tensor]]",)),
    ],
    ids=["number", "nested"],
)
def test_an_archive_that_returns_something_else_is_refused(
    folder: Path, module: torch.nn.Module, fragments: tuple[str, ...]
) -> None:
    script(folder, module)
    with pytest.raises(InvalidArtifact) as raised:
        load(folder, signature(["a"], ["y"]))
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("module", "inputs", "outputs", "message"),
    [
        (Sizes(), ["a"], ["y"], "torchscript: forward returned int for output 'y', not a tensor"),
        (Listed(), AB, ["y"], "torchscript: forward returned 2 values; the outputs are 'y'"),
        (Listed(), AB, ["OUTPUT__2"], "torchscript: forward returned 2 values; the outputs are 'OUTPUT__2'"),
        (Keyed(), AB, ["y"], "torchscript: forward returned 'difference', 'total'; output 'y' is not among them"),
    ],
    ids=["number", "few-outputs", "output-place", "output-name"],
)
def test_what_only_running_shows_fails_the_first_run(
    folder: Path, module: torch.nn.Module, inputs: list[str], outputs: list[str], message: str
) -> None:
    script(folder, module)
    with pytest.raises(ExecutionFailed) as raised:
        run(folder, signature(inputs, outputs), {name: rows(1) for name in inputs})
    assert str(raised.value) == message


def _flip(part: str) -> Callable[[Path], None]:
    """Change a byte in the middle of the first member whose name has ``part`` in it."""

    def flip(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            info = next(each for each in archive.infolist() if part in each.filename)
        content = bytearray(path.read_bytes())
        header = info.header_offset
        start = header + 30 + sum(int.from_bytes(content[header + at : header + at + 2], "little") for at in (26, 28))
        content[start + info.compress_size // 2] ^= 0x55
        path.write_bytes(content)

    return flip


def _drop_code(path: Path) -> None:
    """Write the archive anew without its code, checksums and all."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if "/code/" not in name}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("damage", "fragments"),
    [
        (_flip("/data/0"), ("model.pt is damaged", "data/0' in it is not as it was written")),
        (_flip("constants.pkl"), ("model.pt is damaged", "constants.pkl' in it is not as it was written")),
        (_flip("/code/"), ("model.pt is damaged", "/code/", "in it is not as it was written")),
        (_drop_code, ("model.pt: torch.jit cannot load it:",)),
    ],
    ids=["weights", "constants", "code", "no-code"],
)
def test_a_damaged_archive_is_refused(folder: Path, damage: Callable[[Path], None], fragments: tuple[str, ...]) -> None:
    """Torch itself loads weights that do not have their checksum."""
    save_linear_script(folder / "1")
    damage(folder / "1" / "model.pt")
    with pytest.raises(InvalidArtifact) as raised:
        load(folder, LINEAR)
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


def test_a_module_without_forward_is_refused(folder: Path) -> None:
    class Mute(torch.nn.Module):
        @torch.jit.export
        def encode(self, a: torch.Tensor) -> torch.Tensor:
            return a

    script(folder, Mute())
    with pytest.raises(InvalidArtifact, match=r"model\.pt: .*forward"):
        load(folder, signature(["a"], ["y"]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"freeze": "maybe"}, r"freeze: 'maybe': must be true or false"),
        (
            {"optimize_for_inference": "true", "freeze": "false"},
            r"optimize_for_inference: 'true': goes with freeze: tr",
        ),
    ],
    ids=["freeze", "optimize_for_inference"],
)
def test_a_parameter_that_cannot_be_is_refused(folder: Path, parameters: dict[str, str], message: str) -> None:
    save_linear_script(folder / "1")
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        TorchScriptBackend().complete(make_source(folder, parameters=parameters))


def test_strings_are_refused(folder: Path) -> None:
    save_linear_script(folder / "1")
    declared = Signature((TensorSpec("x", DataType.BYTES, (FOUR,)),), LINEAR.outputs, 8)
    with pytest.raises(InvalidConfig, match=r"tensor 'x': BYTES: torch has no such tensors; the backend 'torchscript'"):
        load(folder, declared)


class Keeping(torch.nn.Module):
    """Answers with what it was asked before."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.last
        self.last = x
        return before


def test_what_a_module_keeps_of_its_inputs_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    save_script(tmp_path / "1", lambda: torch.jit.script(Keeping()))
    signature = Signature(
        (TensorSpec("x", DataType.FP32, (FOUR,)),), (TensorSpec("y", DataType.FP32, (FOUR,)),), max_batch_size=1
    )
    with opened(TorchScriptBackend().load(make_source(tmp_path), signature)) as session:
        buffer = np.ones((1, 4), np.float32)
        session.infer({"x": buffer})
        # The server's memory, which the next request is put into.
        buffer[:] = 7
        assert session.infer({"x": buffer})["y"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_quantized_together_depend_on_each_other(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    quantization: Any = torch.ao.quantization
    dynamic = quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(4, 3)))
    save_script(tmp_path / "1", lambda: torch.jit.script(dynamic))
    assert not TorchScriptBackend().complete(make_source(tmp_path)).row_independent
    save_linear_script(tmp_path / "1")
    assert TorchScriptBackend().complete(make_source(tmp_path)).row_independent
