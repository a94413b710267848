"""While models load beside others that serve, threads hand over the interpreter's lock soon, and importers pause."""

import importlib
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.builders import PATIENCE_S, background

from preheat.models.handing_over import handing_over_often


class Sleeps:
    """Stands in for the clock: each look at it is a hundredth of a second of work after the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, work_s: float = 0.01) -> None:
        self.seconds: list[float] = []
        ticks = itertools.count()
        monkeypatch.setattr("preheat.models.handing_over.time.thread_time", lambda: next(ticks) * work_s)
        monkeypatch.setattr("preheat.models.handing_over.time.sleep", self.seconds.append)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three that are not imported yet."""
    names = [f"{tmp_path.name}_{letter}" for letter in "abc"]
    for name in names:
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return names


def imports(names: list[str]) -> None:
    for name in names:
        importlib.import_module(name)


def test_threads_hand_over_soon_until_the_last_load_has_ended() -> None:
    usual_s = sys.getswitchinterval()
    with handing_over_often():
        with handing_over_often():
            assert sys.getswitchinterval() < usual_s
        assert sys.getswitchinterval() < usual_s
    assert sys.getswitchinterval() == usual_s


def load(names: list[str]) -> None:
    with handing_over_often():
        imports(names)


def test_a_thread_that_imports_sleeps_for_longer_than_it_works(
    modules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = Sleeps(monkeypatch)
    with handing_over_often():
        background(imports, modules).result(PATIENCE_S)
    assert sleeps.seconds == pytest.approx([0.0, 0.03, 0.03])


def test_so_does_one_that_loads_which_was_there_before(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(PATIENCE_S)
        pool.submit(load, modules).result(PATIENCE_S)
    assert sleeps.seconds == pytest.approx([0.0, 0.03, 0.03])


def test_no_sleep_is_long(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch, work_s=60.0)
    with handing_over_often():
        background(imports, modules).result(PATIENCE_S)
    assert sleeps.seconds == [0.0, 0.2, 0.2]


def test_what_a_thread_did_before_the_load_is_no_import(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch, work_s=60.0)
    with ThreadPoolExecutor(1) as pool:
        for name in modules:
            pool.submit(load, [name]).result(PATIENCE_S)
    assert sleeps.seconds == [0.0] * 3


def test_threads_that_serve_do_not_sleep(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch)
    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as serving:
        serving.submit(int).result(PATIENCE_S)
        loading, done = threading.Event(), threading.Event()

        def stay() -> None:
            with handing_over_often():
                loading.set()
                assert done.wait(PATIENCE_S)

        staying = pool.submit(stay)
        assert loading.wait(PATIENCE_S)
        serving.submit(imports, modules).result(PATIENCE_S)
        done.set()
        staying.result(PATIENCE_S)
    assert sleeps.seconds == []


def test_nobody_sleeps_once_the_load_has_ended(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch)
    with handing_over_often():
        pass
    background(imports, modules).result(PATIENCE_S)
    assert sleeps.seconds == []
