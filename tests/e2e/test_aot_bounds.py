"""Out-of-bounds attempts never reach AOTInductor: a build with its checks off and a poisoned guard region proves it.

The server is a real one. Its package does not check its inputs, and each of them lies at the edge of memory: reading
beyond one shows in the answer, or ends the process (``guarded_plugin``). That it would is shown first.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.backends.aot_packages import LOOKUP_CONFIG
from tests.backends.cases import save_foreign_package
from tests.e2e.server_process import ServerProcess, write_model
from tests.e2e.wire import Tensor, Wire, infer_request

from preheat.tensors import Array

pytestmark = pytest.mark.compiles

_PLUGIN = Path(__file__).parent / "guarded_plugin"
_POISON = 12345.0
_MAX_BATCH, _LONGEST = 8, 64
_CONFIG = (
    LOOKUP_CONFIG.replace('"eager"', '"guarded"')
    + 'parameters { key: "preheat.buckets" value { string_value: "1,8" } }\n'
)
_DTYPES: dict[str, Any] = {
    "FP32": np.float32,
    "INT64": np.int64,
    "FP64": np.float64,
    "INT32": np.int32,
    "BOOL": np.bool_,
}


# Of each input: name, datatype, shape, and how many bytes too many or, below 0, too few come with it.
Asked: TypeAlias = tuple[tuple[str, str, tuple[int, ...], int], ...]


@pytest.fixture(scope="module")
def unchecked() -> Iterator[None]:
    """Processes that are started meanwhile have AOTInductor's checks off, and the guarded backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(_PLUGIN), os.environ.get("PYTHONPATH")])))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the guarded model."""
    repository = tmp_path_factory.mktemp("guarded")
    save_foreign_package(write_model(repository, "pair", _CONFIG) / "1")
    return repository


@pytest.fixture(scope="module")
def server(folder: Path, unchecked: None) -> Iterator[ServerProcess]:
    del unchecked
    with ServerProcess(folder) as server:
        assert "AOTI_RUNTIME_CHECK_INPUTS switches the package's own checks of its inputs off" in server.log
        yield server
        assert server.terminate() == 0


@pytest.fixture(scope="module")
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server.grpc_address) as wire:
        yield wire


@pytest.fixture(scope="module")
def seen() -> Counter[bool]:
    """How many requests agreed with the signature, and how many did not."""
    return Counter()


def call_directly(kind: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Call the package past the server, with a mask of one element for 512 values."""
    command = [sys.executable, str(_PLUGIN / "guarded_backend.py"), kind, str(folder / "pair" / "1" / "model.pt2")]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.usefixtures("unchecked")
def test_called_directly_the_package_reads_what_lies_behind_its_input(folder: Path) -> None:
    called = call_directly("poison", folder)
    assert called.returncode == 0, called.stderr
    answer = json.loads(called.stdout)
    assert answer[0] == 1.0
    assert answer[1:] == [_POISON] * (_MAX_BATCH * _LONGEST - 1)


@pytest.mark.usefixtures("unchecked")
def test_called_directly_the_package_dies_of_a_page_that_must_not_be_touched(folder: Path) -> None:
    assert call_directly("wall", folder).returncode == -signal.SIGSEGV


SIZES = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 9, 16, 63, 64, 65, 128, 1000, -1, 2**31, 2**62])
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
# Half of them near what is right: else hardly any would be.
NEAR = st.tuples(st.sampled_from([0, 1, 2, 8, 9]), st.sampled_from([0, 1, 2, 31, 63, 64, 65]))
ANY_SHAPE = st.one_of(NEAR, SHAPES)
DATATYPES = st.sampled_from(["FP32", "INT64", "FP64", "INT32", "BOOL"])


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """Two inputs: name, datatype, shape, and how many bytes too many (or too few) come with it."""
    first = draw(ANY_SHAPE)
    second = first if draw(st.booleans()) else draw(ANY_SHAPE)
    datatypes = draw(st.one_of(st.just(("FP32", "INT64")), st.tuples(DATATYPES, DATATYPES)))
    extra = st.one_of(st.just(0), st.sampled_from([-8, -4, -1, 1, 4, 8, 4096]))
    return (
        ("values", datatypes[0], first, draw(extra)),
        ("mask", datatypes[1], second, draw(extra)),
    )


RIGHT = st.builds(
    lambda shape: (("values", "FP32", shape, 0), ("mask", "INT64", shape, 0)),
    st.tuples(st.integers(1, _MAX_BATCH), st.integers(1, _LONGEST)),
)


def payload(datatype: str, shape: Sequence[int], extra: int, *, seed: int) -> tuple[bytes, Array | None]:
    """The data that goes with a shape, as far as there can be any; and as an array, if it fits the shape."""
    count = math.prod(shape) if all(0 <= size <= 1000 for size in shape) else 512
    array = np.random.default_rng(seed).integers(0, 2, min(count, 2**16)).astype(_DTYPES[datatype])
    raw = array.tobytes()
    fits = extra == 0 and array.size == math.prod(shape)
    changed = raw[:extra] if extra < 0 else raw + b"\1" * extra
    return changed, array.reshape(shape) if fits else None


def agrees(request: Asked) -> bool:
    """Whether a request is one that the model takes."""
    (_, first_type, first, first_extra), (_, second_type, second, second_extra) = request
    right = len(first) == 2 and 1 <= first[0] <= _MAX_BATCH and 1 <= first[1] <= _LONGEST
    return (
        right
        and first == second
        and (first_type, second_type) == ("FP32", "INT64")
        and first_extra == second_extra == 0
    )


def assert_answered(answer: Any, values: Array, mask: Array) -> None:
    """Exactly right: whole numbers, which lose nothing on the way."""
    masked, total = (
        np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    )
    np.testing.assert_array_equal(masked, values * mask)
    np.testing.assert_array_equal(total, (values * mask).sum(axis=1, keepdims=True))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.one_of(RIGHT, requests(), requests()), seed=st.integers(0, 2**16))
@example(request=(("values", "FP32", (8, 64), 0), ("mask", "INT64", (1, 1), 0)), seed=0)
@example(request=(("values", "FP32", (8, 64), 0), ("mask", "INT64", (8, 63), 0)), seed=0)
@example(request=(("values", "FP32", (8, 64), 0), ("mask", "INT64", (8, 64), -8)), seed=0)
@example(request=(("values", "FP32", (8, 64), 0), ("mask", "INT32", (8, 64), 0)), seed=0)
@example(request=(("values", "FP32", (8, 64), 0), ("mask", "INT64", (8, 64), 0)), seed=0)
@example(request=(("values", "FP32", (9, 64), 0), ("mask", "INT64", (9, 64), 0)), seed=0)
@example(request=(("values", "FP32", (1, 65), 0), ("mask", "INT64", (1, 65), 0)), seed=0)
@example(request=(("values", "FP32", (7, 1), 0), ("mask", "INT64", (7, 1), 0)), seed=0)
def test_what_disagrees_is_refused_and_what_agrees_is_answered(
    server: ServerProcess, wire: Wire, seen: Counter[bool], request: Asked, seed: int
) -> None:
    made = [payload(datatype, shape, extra, seed=seed) for _, datatype, shape, extra in request]
    tensors = [Tensor(name, datatype, shape) for name, datatype, shape, _ in request]
    encoded = infer_request("pair", tensors, [raw for raw, _ in made])
    seen[agrees(request)] += 1
    if agrees(request):
        (_, values), (_, mask) = made
        assert values is not None
        assert mask is not None
        assert_answered(wire.infer(encoded), values, mask)
    else:
        status = wire.status("ModelInfer", encoded)
        assert status.code is grpc.StatusCode.INVALID_ARGUMENT, status
    assert server.running


def test_nothing_of_it_has_reached_the_package(server: ServerProcess, wire: Wire, seen: Counter[bool]) -> None:
    """After all of the above: no poison, no error of the package's, and it still answers."""
    assert seen[True] >= 20
    assert seen[False] >= 100
    assert "poison" not in server.log
    assert "Traceback" not in server.log
    assert [line for line in server.log.splitlines() if " ERROR " in line or line.startswith("Error:")] == []
    ones = np.ones((8, 64), np.float32)
    mask = np.ones((8, 64), np.int64)
    tensors = [Tensor("values", "FP32", (8, 64)), Tensor("mask", "INT64", (8, 64))]
    assert_answered(wire.infer(infer_request("pair", tensors, [ones.tobytes(), mask.tobytes()])), ones, mask)
