"""The order of things around a GPU, with stand-ins for what needs one; tests/gpu/test_backends.py has the real ones."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.backends.cases import LINEAR, linear_reference, make_inputs, make_source, save_linear_python

from preheat.backend import Instance
from preheat.errors import ExecutionFailed
from preheat.memory.staging import allocate_aligned
from preheat_backends.eager import EagerBackend
from preheat_backends.torch_programs import transfers
from preheat_backends.torch_programs.session import TorchSession
from preheat_backends.torch_programs.transfers import Transfers


class StreamDouble:
    """Counts how often it was waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TorchSession:
    """One that takes the host for a GPU."""
    monkeypatch.setattr(torch.cuda, "Stream", StreamDouble)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(transfers, "allocate_pinned", allocate_aligned)
    (tmp_path / "1").mkdir()
    save_linear_python(tmp_path / "1")
    session = EagerBackend().load(make_source(tmp_path), LINEAR).open(Instance(0, "cpu", 1))
    assert isinstance(session, TorchSession)
    session._transfers = Transfers(torch.device("cpu"))
    return session


def waits(session: Any) -> int:
    count: int = session._transfers._stream.waits
    return count


def test_each_batch_is_waited_for_once(session: TorchSession) -> None:
    for rows in (1, 3, 2):
        inputs = make_inputs(LINEAR, rows, seed=rows)
        np.testing.assert_allclose(session.infer(inputs)["y"], linear_reference(inputs)["y"], rtol=1e-6, atol=1e-6)
    assert waits(session) == 3


def test_a_batch_that_fails_is_waited_for_too(session: TorchSession) -> None:
    """The device may still read its inputs, where the next ones will be put."""
    with pytest.raises(ExecutionFailed, match=r"^eager: RuntimeError: mat1 and mat2"):
        session.infer({"x": np.zeros((2, 5), np.float32)})
    assert waits(session) == 1


def test_outputs_are_where_those_of_the_batch_before_were(session: TorchSession) -> None:
    first = session.infer(make_inputs(LINEAR, 2, seed=1))["y"]
    assert session.infer(make_inputs(LINEAR, 2, seed=2))["y"].ctypes.data == first.ctypes.data
