"""Backends are found by name, imported late, and say what to install when they cannot be."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.builders import PATIENCE_S

from preheat import plugins
from preheat.backend import Backend
from preheat.errors import BackendMissing
from preheat.plugins import backend_names, extras_of, load_backend

ENTRY_POINTS = """\
[preheat.backends]
late = late_backend:LateBackend
absent = absent_backend:AbsentBackend [engine,cuda]
impostor = late_backend:Impostor
nowhere = late_backend:Nowhere
slow = slow_backend:LateBackend
"""
SLOW = """\
from slow_import import began, may_end
from late_backend import LateBackend

began.set()
assert may_end.wait(60)
"""
LATE = """\
import os
from preheat.backend import Backend, Hardware, PartialConfig

os.environ["LATE_BACKEND_IMPORTED"] = "yes"

class LateBackend(Backend):
    def hardware(self): return Hardware("late", ())
    def complete(self, source): return PartialConfig()
    def load(self, source, signature): raise NotImplementedError

class Impostor:
    pass
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed distribution with backends of its own, gone again after the test; its name."""
    name = f"preheat-{tmp_path.name.replace('_', '-')}"
    metadata = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "late_backend.py").write_text(LATE)
    (tmp_path / "slow_backend.py").write_text(SLOW)
    # What some libraries do when what they link against is absent.
    (tmp_path / "absent_backend.py").write_text("raise RuntimeError('libengine.so.7 is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LATE_BACKEND_IMPORTED", "no")
    monkeypatch.setattr(plugins, "_made", {})
    return name


def test_the_servers_own_backends_are_listed_without_importing_them() -> None:
    assert {"double", "eager", "onnxruntime"} <= set(backend_names())
    assert backend_names() == sorted(backend_names())


def test_the_extras_a_backend_needs_are_known_without_importing_it() -> None:
    assert list(extras_of("double")) == []
    assert list(extras_of("eager")) == ["torch"]


def test_an_unknown_backend_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BackendMissing, match=r"unknown backend 'doubel'; there are .*double.*onnxruntime"):
        load_backend("doubel")


def test_a_backend_is_made_once() -> None:
    assert load_backend("double") is load_backend("double")
    assert isinstance(load_backend("double"), Backend)


@pytest.mark.usefixtures("distribution")
def test_a_backend_of_another_distribution_is_imported_only_when_it_is_asked_for() -> None:
    assert "late" in backend_names()
    assert os.environ["LATE_BACKEND_IMPORTED"] == "no"
    assert load_backend("late").hardware().library == "late"
    assert os.environ["LATE_BACKEND_IMPORTED"] == "yes"


@pytest.mark.usefixtures("distribution")
def test_a_backend_that_is_made_is_had_while_another_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "slow_import", SimpleNamespace(began=began, may_end=may_end))
    made = load_backend("double")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(load_backend, "slow")
        try:
            assert began.wait(PATIENCE_S)
            assert pool.submit(load_backend, "double").result(PATIENCE_S) is made
            assert not slow.done()
        finally:
            may_end.set()
        assert slow.result(PATIENCE_S).hardware().library == "late"


def test_a_backend_that_cannot_be_imported_says_why_and_what_to_install(distribution: str) -> None:
    with pytest.raises(BackendMissing) as caught:
        load_backend("absent")
    assert str(caught.value) == (
        "backend 'absent' cannot be used: libengine.so.7 is not there; "
        f"it needs: pip install '{distribution}[engine,cuda]'"
    )


@pytest.mark.usefixtures("distribution")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("impostor", "backend 'impostor': late_backend:Impostor is no preheat.backend.Backend"),
        ("nowhere", "backend 'nowhere' cannot be used: .*Nowhere"),
    ],
)
def test_an_entry_point_that_is_no_backend_is_refused_by_what_it_names(name: str, expected: str) -> None:
    with pytest.raises(BackendMissing, match=expected):
        load_backend(name)
