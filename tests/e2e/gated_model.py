"""A model behind the gate, and the requests that a test sends to it."""

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.gatekeeper import Arrival, Gatekeeper
from tests.e2e.scrape import scrape, scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, write_model
from tests.e2e.tensors import Rows, infer_inputs, unique_rows

# Longer than any test: who waits for this to pass waits for ever.
NEVER_US = 3_600_000_000
PENDING = "nv_inference_pending_request_count"
SUCCESS = "nv_inference_request_success"
FAILURE = "nv_inference_request_failure"


class Gated:
    """A model behind the gate, and the requests sent to it."""

    def __init__(self, model: str, server: ServerProcess, client: Any, gatekeeper: Gatekeeper) -> None:
        self.model = model
        self.server = server
        self.client = client
        self.gatekeeper = gatekeeper
        self._ends: queue.SimpleQueue[tuple[Rows, Any, Any]] = queue.SimpleQueue()
        self._asked = 0
        self._seen: Arrival | None = None

    def ask(self, *sizes: int, **options: Any) -> list[Any]:
        """Send a request of each size, which may arrive in any order; what each can be taken back by.

        ``options`` are those of tritonclient's ``async_infer``.
        """
        return [self._ask(size, options) for size in sizes]

    def ask_in_queue(self, *sizes: int, already: int = 0, **options: Any) -> None:
        """Send requests one by one, each once the one before it is seen waiting: their order is known."""
        for waiting, size in enumerate(sizes, start=already + 1):
            self.ask(size, **options)
            self.until_waiting(waiting)

    def until_waiting(self, count: int) -> None:
        """Block until ``count`` requests are in the queue."""
        self.scrape_until(PENDING, count)

    def next(self) -> Arrival:
        """The next execution, which waits at the gate."""
        self._seen = self.gatekeeper.next()
        return self._seen

    def let_go(self) -> None:
        """Let the execution that was seen last have its way."""
        assert self._seen is not None
        self.gatekeeper.let_go(self._seen)

    def answers(self, count: int) -> list[Any]:
        """Wait for ``count`` requests to end; the errors. Fails if an answer is not that of its request."""
        errors = []
        for _ in range(count):
            rows, result, error = self._ends.get(timeout=LIMIT_S)
            if error is None:
                assert np.array_equal(result.as_numpy("OUTPUT0"), rows)
            else:
                errors.append(error)
        return errors

    def total(self, name: str, **labels: str) -> float:
        """What the metrics say of the model now."""
        return scrape(self.server).total(name, model=self.model, **labels)

    def scrape_until(self, name: str, count: int, **labels: str) -> None:
        """Block until the metrics say ``count``."""
        scrape_until(self.server, lambda found: found.total(name, model=self.model, **labels) == count)

    def _ask(self, size: int, options: dict[str, Any]) -> Any:
        rows = unique_rows(size, start=1000 * self._asked)
        self._asked += 1
        return self.client.async_infer(
            self.model,
            infer_inputs({"INPUT0": rows}),
            callback=lambda result, error: self._ends.put((rows, result, error)),
            **{"client_timeout": LIMIT_S, **options},
        )


@contextmanager
def serving_gated(folder: Path, gatekeeper: Gatekeeper, configs: Mapping[str, str]) -> Iterator[ServerProcess]:
    """A server of a gated model for each of ``configs``, which say what is particular to it."""
    for model, extra in configs.items():
        write_model(folder, model, gatekeeper.config(extra=extra))
    with ServerProcess(folder) as server:
        yield server


@contextmanager
def gated_model(model: str, server: ServerProcess, gatekeeper: Gatekeeper) -> Iterator[Gated]:
    """``model`` of ``server``, behind a shut gate."""
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        gatekeeper.shut()
        yield Gated(model, server, client, gatekeeper)
        gatekeeper.open()


def of_model(name: str) -> pytest.MarkDecorator:
    """Marks the test as one of model ``name``, which its fixture ``gated`` is."""
    return pytest.mark.parametrize("gated", [name], indirect=True)
