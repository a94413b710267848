"""Callers that leave and servers that stop, on both transports: nothing that was taken is lost, and nothing is left."""

import gzip
import queue
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.gated_model import PENDING, SUCCESS, gated_model
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.http2 import Cut, Http2, message
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows
from tests.e2e.transports import REFUSING, TRANSPORTS, PatientServer, echo_request, installed, messages
from tests.e2e.wire import Tensor, infer_request
from tritonclient.grpc import service_pb2 as pb

pytestmark = pytest.mark.transports

# Numbers in a row of 8 MiB: an answer that fits into no buffer between a server and a client that does not read.
LARGE_ROW = 1024 * 1024


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


@pytest.fixture
def patient(tmp_path: Path, transport: str) -> Iterator[tuple[PatientServer, Gatekeeper]]:
    """A server of ``gated``, ``echo`` and ``large`` that ends when nothing is under way, and not before."""
    with Gatekeeper() as gatekeeper:
        write_model(tmp_path, "gated", gatekeeper.config())
        write_model(tmp_path, "echo", echo_config())
        write_model(tmp_path, "large", large_config(gatekeeper))
        with PatientServer(tmp_path, options=("--transport", transport)) as server:
            yield server, gatekeeper


def large_config(gatekeeper: Gatekeeper) -> str:
    """The configuration of a model behind the gate whose rows have 8 MiB."""
    return echo_config(
        backend="gated", dims=(LARGE_ROW,), max_batch_size=1, extra="", parameters={"port": gatekeeper.port}
    )


def assert_ends_with_nothing_left(server: ServerProcess) -> None:
    assert server.terminate() == 0
    assert "stopped: 0 requests could not be finished in time" in server.log


def test_calls_that_were_taken_back_in_the_queue_while_they_ran_and_after_leave_nothing_under_way(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, gatekeeper = patient
    with gated_model("gated", server, gatekeeper) as gated:
        (running,) = gated.ask(1)
        gated.next()
        queued = gated.ask(2, 3)
        gated.until_waiting(2)
        for call in (*queued, running):
            call.cancel()
        assert [error.status() for error in gated.answers(3)] == ["StatusCode.CANCELLED"] * 3
        gated.until_waiting(0)
        gated.let_go()
        (ended,) = gated.ask(4)
        gated.next()
        gated.let_go()
        assert gated.answers(1) == []
        ended.cancel()
    assert_ends_with_nothing_left(server)


def test_calls_that_are_taken_back_as_they_are_answered_leave_nothing_under_way(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, _ = patient
    ends: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        for number in range(200):
            call = client.async_infer(
                "echo",
                infer_inputs({"INPUT0": unique_rows(1, start=100 * number)}),
                callback=lambda result, error, number=number: ends.put((number, result, error)),
            )
            # Some at once, the others when the one before has ended: about when they are answered.
            if number % 2:
                assert_ended(ends.get(timeout=LIMIT_S))
            call.cancel()
        for _ in range(100):
            assert_ended(ends.get(timeout=LIMIT_S))
    assert_ends_with_nothing_left(server)


def assert_ended(end: tuple[int, Any, Any]) -> None:
    """A call was taken back, or answered with what is its own."""
    number, result, error = end
    if error is None:
        assert np.array_equal(result.as_numpy("OUTPUT0"), unique_rows(1, start=100 * number))
    else:
        assert error.status() == "StatusCode.CANCELLED"


def test_calls_whose_deadline_passes_anywhere_leave_nothing_under_way(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, _ = patient
    ask_with_deadlines(server, 200)
    assert_ends_with_nothing_left(server)


def ask_with_deadlines(server: ServerProcess, count: int) -> None:
    """Make calls of all deadlines from dead on arrival to about what a call takes, and judge how they end."""
    ends: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        for number in range(count):
            client.async_infer(
                "echo",
                infer_inputs({"INPUT0": unique_rows(1, start=100 * number)}),
                callback=lambda result, error, number=number: ends.put((number, result, error)),
                client_timeout=(number % 200 + 1) * 1e-4,
            )
        for _ in range(count):
            number, result, error = ends.get(timeout=LIMIT_S)
            if error is not None:
                assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
            else:
                assert_ended((number, result, error))


def test_a_call_that_is_refused_just_as_its_deadline_passes_is_no_error_in_the_log(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, gatekeeper = patient
    with gated_model("gated", server, gatekeeper) as gated:
        gated.ask(1)
        gated.next()
        # The server notices that each of them is late when its client does.
        for hundred in range(10):
            gated.ask(*[1] * 100, client_timeout=0.5 + hundred / 10)
        assert len(gated.answers(1000)) == 1000
        gated.let_go()
        assert gated.answers(1) == []
    ask_with_deadlines(server, 1000)
    assert server.terminate() == 0
    assert "Traceback" not in server.log


def test_a_client_that_vanishes_with_calls_under_way_leaves_nothing_under_way(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, gatekeeper = patient
    gatekeeper.shut()
    with Http2(server.grpc_address) as connection:
        for each in range(3):
            connection.call(message(echo_request(unique_rows(1, start=100 * each), model="gated")))
        gatekeeper.next()
        # One call has begun and not been sent whole.
        connection.call(message(echo_request(unique_rows(1, start=900), model="gated"))[:9], ends=False)
    scrape_until(server, lambda found: found.total(PENDING, model="gated") == 0)
    gatekeeper.open()
    assert_ends_with_nothing_left(server)


def assert_waits(server: ServerProcess) -> None:
    """The server does not end by itself: one that did would need no second for it."""
    with pytest.raises(subprocess.TimeoutExpired):
        server._process.wait(1)


def test_large_answers_that_are_under_way_at_sigterm_all_arrive(patient: tuple[PatientServer, Gatekeeper]) -> None:
    server, gatekeeper = patient
    gatekeeper.shut()
    rows = [np.arange(each, each + LARGE_ROW, dtype=np.int64).reshape(1, LARGE_ROW) for each in range(4)]
    with grpcclient.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(len(rows)) as asking:
        asked = [asking.submit(client.infer, "large", infer_inputs({"INPUT0": each})) for each in rows]
        gatekeeper.next()
        scrape_until(server, lambda found: found.total(PENDING, model="large") == len(rows) - 1)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(REFUSING)
        gatekeeper.open()
        for sent, call in zip(rows, asked, strict=True):
            assert np.array_equal(call.result(LIMIT_S).as_numpy("OUTPUT0"), sent)
        assert server.wait() == 0


def test_a_large_answer_arrives_that_was_given_before_sigterm_and_not_read_until_after(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, _ = patient
    row = np.arange(LARGE_ROW, dtype=np.int64) % 7
    request = infer_request("large", [Tensor("INPUT0", "INT64", (1, LARGE_ROW))], [row.tobytes()])
    with Http2(server.grpc_address, patient=False) as connection:
        body = message(gzip.compress(request), compressed=True)
        stream = connection.call(body, headers={"grpc-encoding": "gzip"})
        scrape_until(server, lambda found: found.total(SUCCESS, model="large") == 1)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(REFUSING)
        assert_waits(server)
        connection.read_on(stream)
        ((_, payload),) = messages(connection.answer(stream))
        (row_back,) = pb.ModelInferResponse.FromString(payload).raw_output_contents
        assert np.array_equal(np.frombuffer(row_back, np.int64), row)
        # gRPC asks whether a client has seen that it is to go.
        with pytest.raises(Cut):
            for _ in connection.frames():
                pass
        assert server.wait() == 0


def test_answers_that_a_client_took_back_are_not_counted_as_failures_of_the_drain(
    patient: tuple[PatientServer, Gatekeeper],
) -> None:
    server, gatekeeper = patient
    with gated_model("gated", server, gatekeeper) as gated:
        (running,) = gated.ask(1)
        gated.next()
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(REFUSING)
        running.cancel()
        (error,) = gated.answers(1)
        assert error.status() == "StatusCode.CANCELLED"
        gated.let_go()
        assert server.wait() == 0
        assert "stopped: 0 requests" in server.log
