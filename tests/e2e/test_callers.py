"""Many callers at once, some of whom leave early or send rubbish, and models that misbehave: nobody gets hurt."""

import asyncio
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tests.e2e.callers import Caller, End, Faults, Mood, Tally, call_in_loop, call_in_thread
from tests.e2e.scrape import Scrape, scrape, scrape_until
from tests.e2e.server_process import NOT_WEIGHED, ServerProcess, echo_config, write_model
from tests.e2e.tensors import Rows, infer_inputs, unique_rows

pytestmark = pytest.mark.protocol

log = logging.getLogger(__name__)

# Long runs find what short ones do not: STRESS_SECONDS=300 pytest tests/e2e/test_callers.py
STRESS_S = float(os.environ.get("STRESS_SECONDS", "6"))
CALLERS = 64
CLIENTS = 4
TWO_INSTANCES = "dynamic_batching { } instance_group { count: 2 }"

# Warm-up takes the executions 1 to 4 of each session, so only every fifth or rarer may go wrong.
CONFIGS = {
    "steady": echo_config(),
    "two_instances": echo_config(extra=TWO_INSTANCES, parameters={"seconds": 0.002}),
    "one_by_one": echo_config(extra=""),
    "delayed": echo_config(extra="dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 3000 }"),
    "padded": echo_config(parameters={"specializes_on_shape": True}),
    "fail": echo_config(extra=NOT_WEIGHED, parameters={"behavior": "fail", "every": 5}),
    "fail_requests": echo_config(extra=NOT_WEIGHED, parameters={"behavior": "fail", "every": 5, "requests": True}),
    "crash": echo_config(
        extra=f"{NOT_WEIGHED} instance_group {{ count: 2 }}", parameters={"behavior": "crash", "every": 7}
    ),
    "few_rows": echo_config(extra=NOT_WEIGHED, parameters={"behavior": "few_rows", "every": 6}),
    "wrong_dtype": echo_config(extra=NOT_WEIGHED, parameters={"behavior": "wrong_dtype", "every": 8}),
    "hang": echo_config(extra=NOT_WEIGHED, parameters={"behavior": "hang", "every": 20, "seconds": 0.1}),
    "crowded": echo_config(
        extra="dynamic_batching { default_queue_policy { max_queue_size: 1 } }", parameters={"seconds": 0.03}
    ),
}
FAULTS = {
    "fail": Faults("told to fail"),
    "fail_requests": Faults("told to fail"),
    "crash": Faults("internal server error"),
    "few_rows": Faults("rows for a batch of"),
    "wrong_dtype": Faults("float64"),
    "crowded": Faults(queue_fills=True),
}
MODELS = {name: FAULTS.get(name, Faults()) for name in CONFIGS}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("called")
    for name, config in CONFIGS.items():
        write_model(repository, name, config)
    return repository


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    """A server that has answered nothing yet, so that what it counts can be held against what was asked."""
    with ServerProcess(repository) as server:
        yield server


@pytest.fixture(scope="module")
def asked_server(repository: Path) -> Iterator[ServerProcess]:
    """A server for the tests that each ask one model of their own."""
    with ServerProcess(repository) as server:
        yield server


@pytest.mark.timeout(STRESS_S + 240)
def test_every_call_ends_once_with_its_own_rows_or_a_clear_error(server: ServerProcess) -> None:
    callers = [Caller(number, MODELS, time.monotonic() + STRESS_S) for number in range(CALLERS)]
    tally = _call(server, callers)
    log.info("%d calls: %s", tally.total(), _by_end(tally))
    _assert_everything_happened(tally)
    scrape_until(server, lambda found: all(_adds_up(found, model, tally) for model in MODELS))
    _assert_all_answer(server)
    complaints = [line for line in server.log.splitlines() if re.search("(ERROR|WARNING) +preheat", line)]
    assert all("'crash' version 1: executing a batch failed" in line for line in complaints)
    assert server.terminate() == 0


def _call(server: ServerProcess, callers: Sequence[Caller]) -> Tally:
    """Have half of the callers call from threads and half from one event loop."""
    half = len(callers) // 2
    clients = [grpcclient.InferenceServerClient(server.grpc_address) for _ in range(CLIENTS)]
    try:
        with ThreadPoolExecutor(half + 1) as pool:
            in_loop = pool.submit(asyncio.run, _call_in_loop(server, callers[half:]))
            in_threads = [
                pool.submit(call_in_thread, clients[number % CLIENTS], caller)
                for number, caller in enumerate(callers[:half])
            ]
            return sum((future.result() for future in [in_loop, *in_threads]), Counter())
    finally:
        for client in clients:
            client.close()


async def _call_in_loop(server: ServerProcess, callers: Sequence[Caller]) -> Tally:
    async with aioclient.InferenceServerClient(server.grpc_address) as client:
        tallies = await asyncio.gather(*(call_in_loop(client, caller) for caller in callers))
    return sum(tallies, Counter())


def _by_end(tally: Tally) -> Counter[tuple[str, str]]:
    totals: Counter[tuple[str, str]] = Counter()
    for (_, mood, end), count in tally.items():
        totals[mood.value, end.value] += count
    return totals


def _assert_everything_happened(tally: Tally) -> None:
    """A run in which nothing went wrong would prove nothing."""
    ended = {(model, end) for model, _, end in tally}
    assert {model for model, end in ended if end is End.ANSWERED} == set(MODELS)
    failing = {model for model, faults in MODELS.items() if faults.text}
    assert {model for model, end in ended if end is End.FAILED} == failing
    assert ("crowded", End.TURNED_AWAY) in ended
    assert {end for _, end in ended} == set(End)


def _adds_up(found: Scrape, model: str, tally: Tally) -> bool:
    """Whether the server counted what the callers saw.

    It may have answered those who had left, and need never have heard of them.
    """
    seen = Counter[End]()
    for (name, _, end), count in tally.items():
        seen[end] += count if name == model else 0
    left = seen[End.LATE] + seen[End.TAKEN_BACK]

    def counted(reason: str) -> float:
        return found.total("nv_inference_request_failure", model=model, reason=reason)

    success = found.total("nv_inference_request_success", model=model)
    total = success + found.total("nv_inference_request_failure", model=model)
    return (
        found.total("nv_inference_pending_request_count", model=model) == 0
        and seen[End.ANSWERED] <= success <= seen[End.ANSWERED] + left
        and seen[End.FAILED] <= counted("BACKEND") <= seen[End.FAILED] + left
        and seen[End.TURNED_AWAY] <= counted("REJECTED") <= seen[End.TURNED_AWAY] + left
        and counted("CANCELED") <= left
        and counted("OTHER") == seen[End.REFUSED]
        and seen.total() - left <= total <= seen.total()
    )


def _assert_all_answer(server: ServerProcess) -> None:
    """Each model still answers, the misbehaving ones within a few tries."""
    rows = unique_rows(3, start=0)
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        for model in MODELS:
            tries = (_try(client, model, rows) for _ in range(3))
            assert any(result is not None and (result == rows).all() for result in tries), model


def _try(client: Any, model: str, rows: Rows) -> Any:
    try:
        return client.infer(model, infer_inputs({"INPUT0": rows})).as_numpy("OUTPUT0")
    except grpcclient.InferenceServerException:
        return None


def test_without_early_leavers_the_counts_are_exact(server: ServerProcess) -> None:
    ends: Tally = Counter()
    with grpcclient.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> None:
            model = list(MODELS)[number % len(MODELS)]
            rows = unique_rows(1 + number % 5, start=1000 * number)
            answer = _try(client, model, rows)
            assert answer is None or (answer == rows).all()
            ends[model, Mood.PATIENT, End.FAILED if answer is None else End.ANSWERED] += 1

        list(pool.map(ask, range(40 * len(MODELS))))
    answered = _count(ends, End.ANSWERED)
    found = scrape_until(server, lambda found: found.total("nv_inference_request_success") == answered)
    for model in MODELS:
        answered, failed = (ends[model, Mood.PATIENT, end] for end in (End.ANSWERED, End.FAILED))
        assert found.total("nv_inference_request_success", model=model) == answered
        assert found.total("nv_inference_request_failure", model=model) == failed


def _count(tally: Tally, wanted: End) -> int:
    return sum(count for (_, _, end), count in tally.items() if end is wanted)


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        ("fail", "told to fail"),
        ("crash", "internal server error"),
        ("few_rows", "'OUTPUT0' of model 'few_rows' has 1 rows for a batch of 2"),
        ("wrong_dtype", "'OUTPUT0' of model 'wrong_dtype' is float64, its signature says INT64"),
    ],
)
def test_a_model_that_breaks_its_promise_fails_one_batch_and_says_how(
    asked_server: ServerProcess, model: str, fragment: str
) -> None:
    rows = unique_rows(2, start=5)
    with grpcclient.InferenceServerClient(asked_server.grpc_address) as client:
        answers = [_outcome(client, model, rows) for _ in range(30)]
    failures = [answer for answer in answers if isinstance(answer, Exception)]
    assert failures
    assert len(failures) < len(answers) / 2
    for failure in failures:
        assert isinstance(failure, grpcclient.InferenceServerException)
        assert failure.status() == "StatusCode.INTERNAL"
        assert fragment in failure.message()
    assert scrape(asked_server).total("nv_inference_request_failure", model=model, reason="BACKEND") == len(failures)


def _outcome(client: Any, model: str, rows: Rows) -> Any:
    try:
        answer = client.infer(model, infer_inputs({"INPUT0": rows})).as_numpy("OUTPUT0")
    except grpcclient.InferenceServerException as failure:
        return failure
    assert (answer == rows).all()
    return answer
