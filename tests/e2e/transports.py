"""What the tests of the transports share: servers on either, and calls by their bytes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e.server_process import LIMIT_S, ServerProcess, serve_command, server_environment
from tests.e2e.tensors import Rows, unique_rows
from tests.e2e.wire import Tensor, Wire, infer_request
from tritonclient.grpc import service_pb2 as pb

GRPCIO, NATIVE = "grpcio", "native"
TRANSPORTS = (GRPCIO, NATIVE)
REFUSING = "refusing new requests"
_PATIENT = Path(__file__).with_name("patient_server.py")


class PatientServer(ServerProcess):
    """A server that does not end as long as anything is under way: see ``patient_server.py``."""

    def __init__(self, *repositories: Path, options: Sequence[str] = ()) -> None:
        super().__init__(*repositories, options=("--exit-timeout-seconds", "86400", *options))
        # In the place of "-m preheat".
        self._command = [sys.executable, str(_PATIENT), *self._command[3:]]


def installed(transport: str) -> str:
    """``transport``; skips the test where that needs what is not installed."""
    if transport == NATIVE:
        pytest.importorskip("pygrpc_native")
    return transport


def echo_request(rows: Rows, model: str = "echo") -> bytes:
    """A request for ``model`` to answer ``rows``."""
    return infer_request(model, [Tensor("INPUT0", "INT64", rows.shape)], [rows.tobytes()])


def request_of(size: int, *, start: int = 0) -> bytes:
    """A request for ``echo`` that is exactly ``size`` bytes long, most of them its identity's."""
    request = pb.ModelInferRequest.FromString(echo_request(unique_rows(1, start=start)))
    request.id = "i" * (size - 512)
    request.id += "i" * (size - request.ByteSize())
    assert request.ByteSize() == size
    encoded: bytes = request.SerializeToString()
    return encoded


def rows_of(answer: Any) -> Rows:
    """The rows that an answer has."""
    return np.frombuffer(answer.raw_output_contents[0], np.int64).reshape(-1, 4)


def answered(payload: bytes) -> Rows:
    """The rows of an encoded answer."""
    return rows_of(pb.ModelInferResponse.FromString(payload))


def messages(stream: bytes) -> list[tuple[bool, bytes]]:
    """The messages of a call's answer, each with whether it is compressed."""
    found = []
    while stream:
        size = int.from_bytes(stream[1:5])
        found.append((bool(stream[0]), stream[5 : 5 + size]))
        stream = stream[5 + size :]
    return found


def assert_echoes(wire: Wire, *, start: int = 0) -> None:
    """The server answers as it should."""
    rows = unique_rows(2, start=start)
    assert np.array_equal(rows_of(wire.infer(echo_request(rows))), rows)


def refused_start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What a server that does not start says and exits with."""
    result = subprocess.run(
        serve_command(folder, options=options),
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result
