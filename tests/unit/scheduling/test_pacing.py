"""A thread that loads beside models that serve works for a moment, then pauses, again and again."""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from tests.unit.builders import PATIENCE_S, Clock, background

from preheat.scheduling import pacing
from preheat.scheduling.pacing import Pacer, working_s

WORK_S = 0.01


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def pacer(share: float = 0.2, *, in_use: bool = True) -> Pacer:
    return Pacer(share, in_use=lambda: in_use)


@pytest.mark.parametrize(("share", "times"), [(0.2, 4), (0.5, 1), (0.125, 7)])
def test_pauses_are_to_work_as_the_rest_is_to_the_share(clock: Clock, share: float, times: float) -> None:
    with pacer(share).paced():
        for _ in range(3):
            clock.work()
    assert clock.pauses == pytest.approx([WORK_S * times] * 3)


def test_it_pauses_between_functions_of_c_too(clock: Clock) -> None:
    with pacer().paced():
        clock.now_s += WORK_S
        before = list(clock.pauses)
        len("kernel")
        after = list(clock.pauses)
    assert before == []
    assert after == pytest.approx([WORK_S * 4])


def test_a_moment_of_work_is_not_worth_a_pause(clock: Clock) -> None:
    with pacer().paced():
        clock.work(0.0015)
        assert clock.pauses == []
        clock.work(0.0015)
    assert clock.pauses == pytest.approx([0.003 * 4])


def test_no_pause_is_long(clock: Clock) -> None:
    with pacer().paced():
        clock.work(60.0)
    assert clock.pauses == [0.2]


def test_nobody_pauses_for_nobody(clock: Clock) -> None:
    with pacer(in_use=False).paced():
        clock.work(60.0)
    assert clock.pauses == []


def test_whoever_asks_in_the_middle_of_a_load_is_given_way_to(clock: Clock) -> None:
    used = False
    with Pacer(0.2, in_use=lambda: used).paced():
        clock.work()
        used = True
        clock.work()
    assert clock.pauses == pytest.approx([WORK_S * 4])


def test_with_all_of_a_core_nobody_pauses(clock: Clock) -> None:
    with pacer(1.0).paced():
        assert sys.getprofile() is None
        clock.work(60.0)
    assert clock.pauses == []


def test_nothing_is_left_of_it_when_the_block_ends(clock: Clock) -> None:
    with pytest.raises(ValueError, match="no weights"), pacer().paced():
        raise ValueError("no weights")
    assert sys.getprofile() is None
    clock.work(60.0)
    assert clock.pauses == []


def test_threads_that_load_share_what_one_of_them_would_have(clock: Clock) -> None:
    shared = pacer()
    come, go = threading.Event(), threading.Event()

    def load() -> None:
        with shared.paced():
            come.set()
            assert go.wait(PATIENCE_S)
            raise ValueError("no weights")

    other = background(load)
    assert come.wait(PATIENCE_S)
    with shared.paced():
        clock.work()
        # The other has not been seen for so long that it must be waiting.
        clock.now_s += 1.0
        clock.work(0.0)
        clock.work()
    go.set()
    with pytest.raises(ValueError, match="no weights"):
        other.result(PATIENCE_S)
    assert clock.pauses == pytest.approx([WORK_S * 9, 0.2, WORK_S * 4])


def test_one_that_has_ended_leaves_the_others_its_share(clock: Clock) -> None:
    shared = pacer()

    def fail() -> None:
        with shared.paced():
            raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        background(fail).result(PATIENCE_S)
    with shared.paced():
        clock.work()
    assert clock.pauses == pytest.approx([WORK_S * 4])


def test_a_profiler_that_what_is_run_leaves_behind_is_its_own(clock: Clock) -> None:
    def profiler(_frame: FrameType, event: str, argument: object) -> None:
        pass

    try:
        with pacer().paced():
            sys.setprofile(profiler)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert clock.pauses == []


def test_threads_that_serve_do_not_pause(clock: Clock) -> None:
    def serve() -> bool:
        clock.work(60.0)
        return sys.getprofile() is not None

    with pacer().paced():
        assert background(serve).result(PATIENCE_S) is False


def test_one_that_is_being_profiled_is_left_alone(clock: Clock) -> None:
    calls: list[str] = []

    def profiler(_frame: FrameType, event: str, _argument: object) -> None:
        calls.append(event)

    sys.setprofile(profiler)
    try:
        with pacer().paced():
            clock.work(60.0)
            assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert calls
    assert clock.pauses == []


def called_from(module: object, function: str) -> Callable[[Callable[[], object]], object]:
    """A function called so, of a module called so, that calls what it is given."""
    names: dict[str, Any] = {"__name__": module}
    exec(f"def {function}(call): call()", names)  # noqa: S102 - as good as a module of that name
    caller: Callable[[Callable[[], object]], object] = names[function]
    return caller


@pytest.mark.parametrize(
    ("module", "function", "pauses"),
    [
        ("logging", "emit", []),
        ("logging.handlers", "emit", []),
        ("preheat.telemetry.statistics", "observe", []),
        ("concurrent.futures.thread", "submit", []),
        ("concurrent.futures.thread", "run", [WORK_S * 4]),
        ("logging_of_a_model", "emit", [WORK_S * 4]),
        (None, "forward", [WORK_S * 4]),
    ],
)
def test_nobody_pauses_with_a_lock_that_those_who_serve_may_wait_for(
    clock: Clock, module: object, function: str, pauses: list[float]
) -> None:
    meanwhile: list[float] = []

    def work() -> None:
        clock.work()
        meanwhile.extend(clock.pauses)

    call = called_from(module, function)
    with pacer().paced():
        call(work)
    assert meanwhile == pytest.approx(pauses)
    assert clock.pauses == pytest.approx([WORK_S * 4])


def test_working_time_stands_still_in_pauses(clock: Clock) -> None:
    began_s = working_s()
    with pacer().paced():
        clock.work()
        clock.work()
    assert working_s() - began_s == pytest.approx(2 * WORK_S)
    assert len(clock.pauses) == 2
