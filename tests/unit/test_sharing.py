"""Inputs in a client's memory: what steers a computation is copied before anyone looks at it, the rest is not."""

import os
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.unit.builders import Replies, unpadded

from preheat.backend import Dimension, Signature, TensorSpec
from preheat.errors import InvalidRequest
from preheat.memory.regions import Regions
from preheat.messages import InferRequest, InferResponse, InputTensor, OutputTensor, Place
from preheat.scheduling.admission import Gate
from preheat.sharing import share
from preheat.tensors import DataType, Loan

SIZE = 64
SIGNATURE = Signature((TensorSpec("x", DataType.INT64, (Dimension.fixed(4),)),), ())


@pytest.fixture
def shared() -> Iterator[Path]:
    path = Path("/dev/shm") / f"preheat-test-{uuid.uuid4().hex}"  # noqa: S108 - where Linux has them
    path.write_bytes(bytes(SIZE))
    yield path
    path.unlink()


@pytest.mark.parametrize(
    ("datatype", "copied"), [("FP32", False), ("BF16", False), ("INT64", True), ("BOOL", True), ("BYTES", True)]
)
def test_only_numbers_that_never_say_where_to_read_are_used_where_they_lie(
    shared: Path, datatype: str, copied: bool
) -> None:
    regions = Regions()
    regions.register("r", f"/{shared.name}", 0, SIZE)
    request = InferRequest("m", "", "", (InputTensor("x", datatype, (8,), b""),), sources=((0, Place("r", 0, 8)),))
    made, _ = share(regions, request, Replies())
    data = made.inputs[0].data
    if copied:
        assert data == b""
        copy: bytes | memoryview = made.loans["x"].copy()
    else:
        assert isinstance(data, memoryview)
        assert data.readonly
        copy = data
    overwrite(shared, b"\xff" * 8)
    assert bytes(copy) == (bytes(8) if copied else b"\xff" * 8)
    assert made.payload_bytes == (8 if copied else 0)


def overwrite(shared: Path, content: bytes) -> None:
    descriptor = os.open(shared, os.O_RDWR)
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)


def test_what_is_lent_is_not_copied_for_a_request_that_does_not_fit() -> None:
    gate = Gate("m", SIGNATURE, padding=unpadded(SIGNATURE))
    for shape, size in (((8,), 64), ((3,), 24), ((4,), 40)):
        copied: list[int] = []
        lent = Loan(size, partial(_copy, copied))
        with pytest.raises(InvalidRequest):
            gate.admit(InferRequest("m", "", "", (InputTensor("x", "INT64", shape, b""),), loans={"x": lent}))
        assert not copied


def _copy(copied: list[int]) -> bytes:
    copied.append(1)
    return b""


def test_what_is_lent_is_read_when_the_request_fits() -> None:
    gate = Gate("m", SIGNATURE, padding=unpadded(SIGNATURE))
    lent = Loan(32, lambda: np.arange(4, dtype=np.int64).tobytes())
    admitted = gate.admit(InferRequest("m", "", "", (InputTensor("x", "INT64", (4,), b""),), loans={"x": lent}))
    assert admitted.inputs["x"].tolist() == [0, 1, 2, 3]


def test_outputs_that_lie_in_each_others_places_are_swapped_whole(shared: Path) -> None:
    regions = Regions()
    regions.register("r", f"/{shared.name}", 0, SIZE)
    overwrite(shared, np.array([1, 2], np.float32).tobytes())
    first, second = Place("r", 0, 4), Place("r", 4, 4)
    inputs = (InputTensor("a", "FP32", (1,), b""), InputTensor("b", "FP32", (1,), b""))
    request = InferRequest("m", "", "", inputs, sources=((0, first), (1, second)), places={"a": second, "b": first})
    made, reply = share(regions, request, Replies())
    views = {tensor.name: np.frombuffer(tensor.data, np.float32) for tensor in made.inputs}
    reply(InferResponse("m", "1", "", tuple(OutputTensor(name, DataType.FP32, views[name]) for name in views)))
    assert np.frombuffer(shared.read_bytes()[:8], np.float32).tolist() == [2, 1]
