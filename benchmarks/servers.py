"""The servers that benchmarks compare, as processes whose use of the machine can be read."""

import importlib.util
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tritonclient.grpc as grpcclient
from tests.e2e.scrape import scrape
from tests.e2e.server_process import ServerProcess
from tritonclient.utils import InferenceServerException

SLOWEST_START_S = 1800.0
_TRITON_START_S = 120.0
_STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that runs: where it listens, and its process."""

    name: str
    address: str
    pid: int


class PreheatServer(ServerProcess):
    """A server of this project on free ports."""

    def __init__(self, *repositories: Path, options: Sequence[str] = ()) -> None:
        super().__init__(*repositories, options=options, limit_s=SLOWEST_START_S)

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    def executed(self, model: str) -> "Executed":
        """What ``model`` has run so far."""
        seen = scrape(self)
        return Executed(
            seen.total("nv_inference_count", model=model), seen.total("nv_inference_exec_count", model=model)
        )


@dataclass(frozen=True, slots=True)
class Executed:
    """Rows that were answered, and the batches they were in."""

    rows: float
    batches: float

    def mean_batch_since(self, earlier: "Executed") -> float:
        """Rows in a batch, on average, since ``earlier``."""
        batches = self.batches - earlier.batches
        assert batches, "no batch was executed"
        return (self.rows - earlier.rows) / batches


class TritonServer:
    """NVIDIA Triton, by a command that takes a repository, from ``__enter__`` to ``__exit__``, which ends it."""

    def __init__(self, command: str, address: str, repository: Path) -> None:
        self._command = [*shlex.split(command), str(repository)]
        self._address = address

    def __enter__(self) -> Self:
        with grpcclient.InferenceServerClient(self._address) as client:
            assert not _is_ready(client), f"a server is on {self._address} already, and would be measured instead"
        self._log = tempfile.TemporaryFile()
        # A session of its own, so that whatever the command starts ends with it.
        self._process = subprocess.Popen(  # noqa: S603 - the operator gives the command
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("Triton, Python backend", self._address, self._process.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _wait_until_ready(self) -> None:
        limit_s = time.monotonic() + _TRITON_START_S
        with grpcclient.InferenceServerClient(self._address) as client:
            while not _is_ready(client):
                if self._process.poll() is not None or time.monotonic() > limit_s:
                    self._log.seek(0)
                    text = self._log.read().decode(errors="replace")
                    raise AssertionError(f"{shlex.join(self._command)} is not ready on {self._address}:\n{text}")
                time.sleep(0.1)


def _is_ready(client: grpcclient.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except InferenceServerException:
        return False


def stop_servers_when_terminated() -> None:
    """Have SIGTERM end this process as an error would, so that the servers it started end too."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def installed_transports() -> list[str]:
    """The transports that can be compared here."""
    return ["grpcio"] + (["native"] if importlib.util.find_spec("pygrpc_native") else [])


def server_version(address: str) -> str:
    """What a server says it is."""
    with grpcclient.InferenceServerClient(address) as client:
        metadata = client.get_server_metadata()
    return f"{metadata.name} {metadata.version}"


def has_shared_memory(address: str) -> bool:
    """Whether a server takes tensors by system shared memory."""
    with grpcclient.InferenceServerClient(address) as client:
        try:
            client.get_system_shared_memory_status()
        except InferenceServerException as error:
            if error.status() == "StatusCode.UNIMPLEMENTED":
                return False
            raise
    return True
