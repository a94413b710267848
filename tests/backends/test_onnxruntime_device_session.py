"""Sessions that bind their inputs and outputs to memory, here that of the host: no GPU has run them."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.backends.cases import (
    MAX_BATCH,
    PAIR,
    THREE,
    make_inputs,
    make_source,
    pair_reference,
    save_copy_graph,
    save_pair_graph,
)
from tests.backends.test_backend_contract import sample

from preheat.backend import Instance, Signature, TensorSpec
from preheat.errors import ExecutionFailed
from preheat.tensors import Array, DataType
from preheat_backends.onnxruntime import OnnxRuntimeBackend, device_session
from preheat_backends.onnxruntime.backend import OnnxRuntimeModel
from preheat_backends.onnxruntime.device_session import DeviceSession, Place

with_and_without_torch = pytest.mark.parametrize("copier", [torch, None], ids=["torch", "without"])


@pytest.fixture(autouse=True)
def ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU there is none that is page-locked."""
    monkeypatch.setattr(device_session, "allocate_page_locked", lambda size, _: np.empty(size, np.uint8))


def open_bound(folder: Path, signature: Signature, copier: ModuleType | None) -> DeviceSession:
    model = OnnxRuntimeBackend().load(make_source(folder), signature)
    assert isinstance(model, OnnxRuntimeModel)
    return DeviceSession(model._session, signature.outputs, Place("cpu", 0), copier)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1").mkdir()
    save_pair_graph(tmp_path / "1")
    return tmp_path


@with_and_without_torch
def test_batches_of_changing_shape_are_answered_right(folder: Path, copier: ModuleType | None) -> None:
    session = open_bound(folder, PAIR, copier)
    for rows, sequence in ((1, 5), (8, 64), (3, 1), (8, 64)):
        inputs = make_inputs(PAIR, rows, sequence=sequence)
        answers = session.infer(inputs)
        for name, expected in pair_reference(inputs).items():
            np.testing.assert_allclose(answers[name], expected, rtol=1e-6)


@with_and_without_torch
@pytest.mark.parametrize(
    "datatype", [each for each in DataType if each is not DataType.BYTES], ids=lambda each: each.value
)
def test_every_datatype_but_text_comes_back_as_it_went(
    tmp_path: Path, copier: ModuleType | None, datatype: DataType
) -> None:
    (tmp_path / "1").mkdir()
    save_copy_graph(tmp_path / "1", datatype)
    specs = [(TensorSpec(name, datatype, (THREE,)),) for name in ("x", "y")]
    session = open_bound(tmp_path, Signature(specs[0], specs[1], MAX_BATCH), copier)
    for array in (sample(datatype), sample(datatype)[:0]):
        answer: Array = session.infer({"x": array})["y"]
        assert answer.dtype == array.dtype
        np.testing.assert_array_equal(answer, array)


@with_and_without_torch
def test_a_failed_run_tells_why(folder: Path, copier: ModuleType | None) -> None:
    session = open_bound(folder, PAIR, copier)
    inputs = make_inputs(PAIR, 2)
    with pytest.raises(ExecutionFailed, match=r"^onnxruntime: \w"):
        session.infer({**inputs, "mask": inputs["mask"][:, :1].repeat(2, axis=1)})


def test_a_model_with_text_runs_on_the_host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OnnxRuntimeBackend().load(make_source(folder), PAIR)
    assert isinstance(model, OnnxRuntimeModel)
    monkeypatch.setattr(model, "_place", Place("cuda", 0))
    assert isinstance(model.open(Instance(0, "cuda:0", 1)), DeviceSession)
    text = (TensorSpec("x", DataType.BYTES, (THREE,)),)
    monkeypatch.setattr(model, "_signature", Signature(text, text, 0))
    assert not isinstance(model.open(Instance(0, "cuda:0", 1)), DeviceSession)
