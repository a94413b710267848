"""The same mistakes made with a model of every backend: each is told by code and by name, and harms nobody."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import grpc
import numpy as np
import pytest
from tests.e2e.malformed_backends import SUBJECTS, Subject
from tests.e2e.malformed_mistakes import GROUPS
from tests.e2e.malformed_requests import INVALID, NOT_FOUND, UNIMPLEMENTED, Case
from tests.e2e.server_process import ServerProcess
from tests.e2e.wire import Wire, infer_request

subjects = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
groups = pytest.mark.parametrize("group", GROUPS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("malformed_backends")
    for subject in SUBJECTS:
        subject.write(repository)
    with ServerProcess(repository) as server:
        yield server
        # After everything in this module, it stops as it should.
        assert server.terminate() == 0
        assert_nothing_broke(server)


@pytest.fixture(scope="module")
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server.grpc_address) as wire:
        yield wire


def assert_nothing_broke(server: ServerProcess) -> None:
    assert "Traceback" not in server.log
    assert [line for line in server.log.splitlines() if " ERROR " in line or " CRITICAL " in line] == []


def assert_unharmed(server: ServerProcess, wire: Wire, subject: Subject) -> None:
    for request in subject.requests():
        subject.assert_answered(wire.infer(request))
    assert server.running
    assert_nothing_broke(server)


def complaint(wire: Wire, case: Case) -> str | None:
    """What is wrong with the refusal of ``case``."""
    status = wire.status("ModelInfer", case.request)
    if status.code is case.code and all(fragment in status.text for fragment in case.fragments):
        return None
    return f"{case.what}: should be {case.code} with {case.fragments}, is {status}"


@groups
@subjects
def test_mistakes_are_refused_by_name_and_the_model_still_answers(
    server: ServerProcess, wire: Wire, subject: Subject, group: str
) -> None:
    cases = list(GROUPS[group](subject))
    assert cases
    assert [each for case in cases if (each := complaint(wire, case))] == []
    assert_unharmed(server, wire, subject)


def test_mistakes_and_correct_requests_of_all_models_at_once_do_not_meet(server: ServerProcess, wire: Wire) -> None:
    def send_both(subject: Subject) -> list[str]:
        complaints = []
        for case in (case for group in GROUPS.values() for case in list(group(subject))[::4]):
            complaints.append(complaint(wire, case))
            subject.assert_answered(wire.infer(subject.requests()[-1]))
        return [each for each in complaints if each]

    with ThreadPoolExecutor(len(SUBJECTS)) as pool:
        assert list(chain.from_iterable(pool.map(send_both, SUBJECTS))) == []
    assert_nothing_broke(server)


@subjects
def test_requests_with_flipped_bits_end_in_an_answer_or_a_refusal(
    server: ServerProcess, wire: Wire, subject: Subject
) -> None:
    dice = np.random.default_rng(len(subject.name))
    for request in subject.requests() * 15:
        damaged = np.frombuffer(request, np.uint8).copy()
        damaged[dice.integers(len(damaged), size=2)] ^= 1 << dice.integers(8, size=2, dtype=np.uint8)
        status = wire.status("ModelInfer", damaged.tobytes())
        if "is not UTF-8" not in status.text:  # a flipped text; see below
            looked_up = subject.looks_up and "index out of bounds" in status.text
            answered = status.code in {grpc.StatusCode.OK, INVALID, NOT_FOUND, UNIMPLEMENTED}
            assert answered or looked_up, (status, damaged.tobytes())
    assert_unharmed(server, wire, subject)


def test_a_text_that_an_engine_cannot_hold_is_the_mistake_of_the_client(server: ServerProcess, wire: Wire) -> None:
    (subject,) = (each for each in SUBJECTS if each.name == "onnxruntime_texts")
    (tensor,) = subject.tensors()
    texts = b"\2\0\0\0\xff\xfe" + bytes(8)
    status = wire.status("ModelInfer", infer_request(subject.name, [tensor], [texts]))
    assert "'x'" in status.text
    assert "UTF-8" in status.text
    assert_unharmed(server, wire, subject)
    assert status.code is INVALID
