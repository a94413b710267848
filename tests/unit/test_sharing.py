"""Inputs in a client's memory: what steers a computation is copied before anyone looks at it, the rest is not."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.builders import Replies

from preheat.memory.regions import Regions
from preheat.messages import InferRequest, InputTensor, Place
from preheat.sharing import share

SIZE = 64


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
    descriptor = os.open(shared, os.O_RDWR)
    os.pwrite(descriptor, b"\xff" * 8, 0)
    os.close(descriptor)
    data = made.inputs[0].data
    assert isinstance(data, bytes | memoryview)
    assert bytes(data) == (bytes(8) if copied else b"\xff" * 8)
    assert copied or memoryview(data).readonly
