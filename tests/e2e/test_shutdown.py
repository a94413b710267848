"""Stopping in order: nobody who was accepted is dropped, and nothing can keep the server from ending."""

import asyncio
import itertools
import logging
import queue
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, METRICS_PORT, NOT_WEIGHED, ServerProcess, echo_config, write_model
from tests.e2e.tensors import Rows, infer_inputs, unique_rows
from tests.e2e.wire import NOT_SERVING, SERVICE, SERVING, Wire
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.protocol

log = logging.getLogger(__name__)

REFUSING = "refusing new requests"
STOPPING = "shutting down"


class Asked:
    """Requests under way to one model, and how they end."""

    def __init__(self, client: Any, model: str) -> None:
        self._client = client
        self._model = model
        self._ends: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
        self._rows: list[Rows] = []

    def ask(self) -> None:
        """Send a request with rows of its own."""
        number = len(self._rows)
        self._rows.append(unique_rows(1 + number % 3, start=100 * number))
        self._client.async_infer(
            self._model,
            infer_inputs({"INPUT0": self._rows[number]}),
            callback=lambda result, error: self._ends.put((number, result, error)),
        )

    def errors(self) -> list[Any]:
        """Wait until each request has ended; the errors. Fails if an answer is not that of its request."""
        errors = []
        for _ in self._rows:
            number, result, error = self._ends.get(timeout=LIMIT_S)
            if error is None:
                assert np.array_equal(result.as_numpy("OUTPUT0"), self._rows[number])
            else:
                errors.append(error)
        assert self._ends.empty(), "a request ended twice"
        return errors


@pytest.fixture
def gatekeeper() -> Iterator[Gatekeeper]:
    with Gatekeeper() as gatekeeper:
        yield gatekeeper


def _ask_until_one_executes(server: ServerProcess, gatekeeper: Gatekeeper, asked: Asked, *, waiting: int) -> None:
    """Have one request execute behind the gate and ``waiting`` more wait for it to end."""
    asked.ask()
    gatekeeper.next()
    for _ in range(waiting):
        asked.ask()
    scrape_until(server, lambda found: found.total("nv_inference_pending_request_count") == waiting)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_code_0(tmp_path: Path, number: signal.Signals) -> None:
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path) as server:
        assert server.terminate(number) == 0
        assert "stopped" in server.log
        assert "Traceback" not in server.log


def test_accepted_requests_are_answered_and_new_ones_refused(tmp_path: Path, gatekeeper: Gatekeeper) -> None:
    write_model(tmp_path, "gated", gatekeeper.config(max_batch_size=4))
    with ServerProcess(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_address) as client:
        gatekeeper.shut()
        asked = Asked(client, "gated")
        _ask_until_one_executes(server, gatekeeper, asked, waiting=9)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(REFUSING)
        _assert_refuses(client)
        gatekeeper.open()
        assert asked.errors() == []
        assert server.wait() == 0


def _assert_refuses(client: Any) -> None:
    """A server on its way down is not ready, and says why it takes nothing."""
    assert not client.is_server_ready()
    assert not client.is_model_ready("gated")
    refused = (
        lambda: client.infer("gated", infer_inputs({"INPUT0": unique_rows(1, start=0)})),
        client.is_server_live,
        lambda: client.get_model_metadata("gated"),
    )
    for call in refused:
        with pytest.raises(grpcclient.InferenceServerException, match=STOPPING) as refusal:
            call()
        assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_requests_that_cannot_be_finished_in_time_are_told_so(tmp_path: Path, gatekeeper: Gatekeeper) -> None:
    write_model(tmp_path, "gated", gatekeeper.config(max_batch_size=4))
    options = ["--exit-timeout-seconds", "0.3"]
    with (
        ServerProcess(tmp_path, options=options) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        gatekeeper.shut()
        asked = Asked(client, "gated")
        _ask_until_one_executes(server, gatekeeper, asked, waiting=5)
        assert server.terminate() == 0
        errors = asked.errors()
        assert len(errors) == 6
        for error in errors:
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert "the server stopped before the request was finished" in error.message()
        assert "6 requests" in server.log
        assert "a session hangs" in server.log


def test_a_session_that_never_returns_does_not_keep_the_others_from_ending_well(tmp_path: Path) -> None:
    # Warm-up runs four batches, and the server asks four times itself, so the first request is the ninth.
    write_model(tmp_path, "stuck", echo_config(extra=NOT_WEIGHED, parameters={"behavior": "hang", "every": 9}))
    write_model(tmp_path, "echo", echo_config())
    options = ["--exit-timeout-seconds", "0.3"]
    with (
        ServerProcess(tmp_path, options=options) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        stuck, fine = Asked(client, "stuck"), Asked(client, "echo")
        stuck.ask()
        fine.ask()
        assert fine.errors() == []
        assert server.terminate() == 0
        assert [error.status() for error in stuck.errors()] == ["StatusCode.UNAVAILABLE"]
        assert re.search(r"echo/1 UNLOADED", server.log)


def test_a_lame_duck_is_not_ready_but_serves(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    with (
        ServerProcess(tmp_path, options=["--lame-duck-seconds", "600"]) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
        Wire(server.grpc_address) as wire,
    ):
        assert client.is_server_ready()
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("not ready, serving for another")
        assert not client.is_server_ready()
        assert wire.health() == wire.health(SERVICE.full_name) == NOT_SERVING
        assert client.is_server_live()
        assert client.is_model_ready("echo")
        asked = Asked(client, "echo")
        asked.ask()
        assert asked.errors() == []
        # It would serve for ten minutes.
        assert server.insist(signal.SIGINT) == 1


def test_a_lame_duck_ends(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, options=["--lame-duck-seconds", "0.1"]) as server:
        assert server.terminate() == 0
        assert server.log.index("serving for another") < server.log.index(REFUSING)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once_with_code_1(
    tmp_path: Path, gatekeeper: Gatekeeper, second: signal.Signals
) -> None:
    write_model(tmp_path, "gated", gatekeeper.config())
    with ServerProcess(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_address) as client:
        gatekeeper.shut()
        asked = Asked(client, "gated")
        _ask_until_one_executes(server, gatekeeper, asked, waiting=0)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(REFUSING)
        assert server.insist(second) == 1
        assert "second signal" in server.log
        assert [error.status() for error in asked.errors()] == ["StatusCode.UNAVAILABLE"]


@pytest.mark.parametrize("stage", ["load", "execute"])
def test_a_server_that_is_still_loading_or_warming_can_be_stopped(tmp_path: Path, stage: str) -> None:
    with Gatekeeper(shut=True) as gatekeeper:
        write_model(tmp_path, "gated", gatekeeper.config())
        write_model(tmp_path, "echo", echo_config())
        with (
            ServerProcess(tmp_path, until=METRICS_PORT) as server,
            grpcclient.InferenceServerClient(server.grpc_address) as client,
        ):
            while (arrival := gatekeeper.next()).what != stage:
                gatekeeper.let_go(arrival)
            scrape_until(server, lambda found: found.state("echo") == ["READY"])
            asked = Asked(client, "echo")
            asked.ask()
            assert asked.errors() == []
            assert server.terminate() == 0
            assert "Traceback" not in server.log


def test_a_load_that_a_client_asked_for_does_not_hold_the_process(tmp_path: Path) -> None:
    with Gatekeeper(shut=True) as gatekeeper:
        write_model(tmp_path, "gated", gatekeeper.config())
        options = ("--model-control-mode", "explicit", "--exit-timeout-seconds", "1")
        with (
            ServerProcess(tmp_path, options=options) as server,
            grpcclient.InferenceServerClient(server.grpc_address) as client,
            ThreadPoolExecutor(1) as asking,
        ):
            load = asking.submit(client.load_model, "gated")
            # It stays there: nobody lets it go.
            gatekeeper.next()
            assert server.terminate() == 0
            with pytest.raises(InferenceServerException):
                load.result()
            assert "Traceback" not in server.log


def test_a_watcher_of_health_sees_the_server_stop_and_does_not_hold_it(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path) as server, Wire(server.grpc_address) as wire:
        watched = wire.watch_health()
        assert next(watched) == SERVING
        server.send_signal(signal.SIGTERM)
        assert next(watched) == NOT_SERVING
        assert server.wait() == 0


class Crowd:
    """Callers who ask without pause, each until it is turned away, and how often each end was seen."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ends: Counter[str] = Counter()
        self.busy = threading.Event()

    def ask_in_thread(self) -> None:
        """Ask until turned away."""
        with grpcclient.InferenceServerClient(self._address) as client:
            while True:
                rows = self._rows()
                try:
                    result = client.infer("echo", infer_inputs({"INPUT0": rows}), client_timeout=LIMIT_S)
                except grpcclient.InferenceServerException as error:
                    return self._count(f"{error.status()}: {error.message()}")
                self._check(rows, result)

    async def ask_in_tasks(self, count: int) -> None:
        """Ask in ``count`` tasks on one connection until each is turned away."""
        async with aioclient.InferenceServerClient(self._address) as client:
            await asyncio.gather(*(self._ask_in_task(client) for _ in range(count)))

    def ends(self) -> Counter[str]:
        """How often callers were answered, and the words they were turned away with."""
        with self._lock:
            return Counter(self._ends)

    async def _ask_in_task(self, client: Any) -> None:
        while True:
            rows = self._rows()
            try:
                result = await client.infer("echo", infer_inputs({"INPUT0": rows}), client_timeout=LIMIT_S)
            except grpcclient.InferenceServerException as error:
                return self._count(f"{error.status()}: {error.message()}")
            self._check(rows, result)

    def _rows(self) -> Rows:
        number = next(self._numbers)
        return unique_rows(1 + number % 4, start=100 * number)

    def _check(self, rows: Rows, result: Any) -> None:
        assert np.array_equal(result.as_numpy("OUTPUT0"), rows)
        self._count("answered")
        if self._ends["answered"] >= 200:
            self.busy.set()

    def _count(self, end: str) -> None:
        with self._lock:
            self._ends[end] += 1


def test_under_load_every_request_is_answered_or_turned_away_in_words(tmp_path: Path) -> None:
    config = echo_config(extra="dynamic_batching { } instance_group { count: 2 }", parameters={"seconds": 0.002})
    write_model(tmp_path, "echo", config)
    with ServerProcess(tmp_path) as server, ThreadPoolExecutor(9) as pool:
        crowd = Crowd(server.grpc_address)
        asking = [pool.submit(crowd.ask_in_thread) for _ in range(8)]
        asking.append(pool.submit(asyncio.run, crowd.ask_in_tasks(16)))
        assert crowd.busy.wait(LIMIT_S)
        assert server.terminate() == 0
        for each in asking:
            each.result()
        ends = crowd.ends()
    log.info("%s", ends)
    turned_away = {end: count for end, count in ends.items() if end != "answered"}
    assert sum(turned_away.values()) == 24
    for end in turned_away:
        # Whoever comes when the port is closed finds nobody; nobody whose request was taken loses its connection.
        assert end.startswith("StatusCode.UNAVAILABLE")
        assert STOPPING in end or "Connection refused" in end
