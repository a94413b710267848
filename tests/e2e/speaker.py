"""A model whose answers tell which version gave them, and clients that ask it while versions change."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import LIMIT_S, ServerProcess
from tests.e2e.tensors import infer_inputs
from tritonclient.utils import InferenceServerException

# How far something has come when it is killed. More for a search: KILLS=50 pytest tests/e2e -k killed
MOMENTS = [random.Random(number).random() for number in range(int(os.environ.get("KILLS", "3")))]  # noqa: S311 - no secret

# A model whose answers tell which text it was loaded from.
SPEAKER = """
import numpy as np
from triton_python_backend_utils import InferenceResponse, Tensor

class TritonPythonModel:
    def execute(self, requests):
        return [InferenceResponse([Tensor("OUTPUT0", np.array([{number}], np.int64))]) for _ in requests]
"""
SPEAKER_CONFIG = """
backend: "python"
input { name: "INPUT0" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "OUTPUT0" data_type: TYPE_INT64 dims: [ 1 ] }
"""


def speak(folder: Path, version: int, number: int) -> None:
    """A version that answers ``number``, written as an editor would."""
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    (folder / str(version) / "model.py").write_text(SPEAKER.format(number=number))


def write_speaker(repository: Path) -> None:
    """The model ``speaker``, whose version 1 answers 10."""
    speak(repository / "speaker", 1, 10)
    (repository / "speaker" / "config.pbtxt").write_text(SPEAKER_CONFIG)


def ask(client: Any, model: str = "speaker") -> int:
    inputs = infer_inputs({"INPUT0": np.zeros(1, np.int64)})
    return int(client.infer(model, inputs, client_timeout=LIMIT_S).as_numpy("OUTPUT0")[0])


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again; the server's own events are not this process's."""
    until_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.01)


class Asking:
    """Asks without end on a thread of its own, and keeps what it was told."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._stop = threading.Event()
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)

    @staticmethod
    def ask(client: Any) -> int:
        """One request."""
        return ask(client)

    def _run(self) -> None:
        with grpcclient.InferenceServerClient(self._server.grpc_address) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(self.ask(client))
                except InferenceServerException as exc:
                    self.failures.append(str(exc))
