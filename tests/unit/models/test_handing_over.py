"""While models load beside others that serve, threads hand over the interpreter's lock soon, and importers pause."""

import importlib
import itertools
import sys
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


def test_a_thread_that_imports_sleeps_for_longer_than_it_works(
    modules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = Sleeps(monkeypatch)
    with handing_over_often():
        background(imports, modules).result(PATIENCE_S)
    assert sleeps.seconds == pytest.approx([0.0, 0.03, 0.03])


def test_no_sleep_is_long(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch, work_s=60.0)
    with handing_over_often():
        background(imports, modules).result(PATIENCE_S)
    assert sleeps.seconds == [0.0, 0.2, 0.2]


def test_the_thread_of_the_event_loop_does_not_sleep(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch)
    with handing_over_often():
        imports(modules)
    assert sleeps.seconds == []


def test_nobody_sleeps_once_the_load_has_ended(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = Sleeps(monkeypatch)
    finders = list(sys.meta_path)
    with handing_over_often():
        pass
    background(imports, modules).result(PATIENCE_S)
    assert sleeps.seconds == []
    assert sys.meta_path == finders
