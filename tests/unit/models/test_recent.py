"""What is kept of what a version is asked can be asked again, and is bounded."""

from itertools import count

import numpy as np
import pytest
from tests.unit.builders import request, tensor

from preheat.messages import InferRequest, InputTensor, Place
from preheat.models.recent import RecentRequests

ROW = np.ones((1, 2), np.float32)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes with each look at the clock."""
    seconds = count()
    monkeypatch.setattr("preheat.models.recent.time.monotonic", lambda: float(next(seconds)))


def test_each_request_is_given_once() -> None:
    recent = RecentRequests()
    for _ in range(3):
        recent.offer(request(tensor("x", ROW)), {"x": ROW})
    requests, count = recent.since(0)
    assert len(requests) == 3
    assert recent.since(count) == ([], 3)
    recent.offer(request(tensor("x", ROW)), {"x": ROW})
    assert len(recent.since(count)[0]) == 1


def test_it_asks_for_everything_and_in_no_hurry() -> None:
    recent = RecentRequests()
    asked = InferRequest(
        "m", "1", "id", (tensor("x", ROW),), ("y",), {"priority": 1, "timeout": 5, "colour": "blue"}, deadline_s=1.0
    )
    recent.offer(asked, {"x": ROW})
    assert recent.since(0)[0] == [InferRequest("m", "", "", asked.inputs, parameters={"colour": "blue"})]


def test_what_lies_in_a_clients_memory_is_copied() -> None:
    recent = RecentRequests()
    lent = InputTensor("x", "FP32", (1, 2), b"")
    asked = InferRequest("m", "", "", (lent,), sources=((0, Place("region", 0, 8)),), places={"y": Place("out", 0, 8)})
    recent.offer(asked, {"x": ROW})
    (kept,) = recent.since(0)[0]
    assert kept.inputs == (tensor("x", ROW),)
    assert not kept.sources
    assert not kept.places


def lent(size: int) -> InferRequest:
    """A request whose data lies in a client's memory, which is no payload of its own."""
    source = (0, Place("region", 0, size))
    return InferRequest("m", "", "", (InputTensor("x", "FP32", (1, size // 4), b""),), sources=(source,))


def test_copies_of_what_clients_share_count_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preheat.models.recent._MOST_BYTES", 100)
    recent = RecentRequests()
    for size in (40, 40, 40, 104):
        recent.offer(lent(size), {"x": np.ones((1, size // 4), np.float32)})
    assert [each.payload_bytes for each in recent.since(0)[0]] == [40, 40]


def test_the_larger_what_is_copied_the_rarer_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preheat.models.recent._BYTES_COPIED_PER_SECOND", 16)
    recent = RecentRequests()
    # 40 bytes are 2.5 s of copying: the next is due at the third look at the clock after.
    for _ in range(6):
        recent.offer(lent(40), {"x": np.ones((1, 10), np.float32)})
    assert len(recent.since(0)[0]) == 2


def test_only_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentRequests()
    for number in range(100):
        recent.offer(request(tensor("x", ROW * number)), {"x": ROW})
    kept, count = recent.since(0)
    assert (len(kept), count) == (64, 100)
    assert kept[-1].inputs == (tensor("x", ROW * 99),)
    monkeypatch.setattr("preheat.models.recent._MOST_BYTES", 100)
    recent = RecentRequests()
    for payload in (40, 40, 40, 101):
        recent.offer(request(tensor("x", ROW))._replace(payload_bytes=payload), {"x": ROW})
    assert [each.payload_bytes for each in recent.since(0)[0]] == [40, 40]


def test_requests_that_come_fast_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preheat.models.recent.time.monotonic", lambda: 1.0)
    recent = RecentRequests()
    for _ in range(10):
        recent.offer(request(tensor("x", ROW)), {"x": ROW})
    assert len(recent.since(0)[0]) == 1
