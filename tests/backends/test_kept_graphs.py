"""Graphs kept for the next load: found without tracing as long as they are what tracing would find, else traced."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from tests.backends.compiling import (
    BREAKING_NETWORK,
    COUNTING_NETWORK,
    LINEAR_NETWORK,
    POINTWISE_NETWORK,
    Instances,
    buckets,
    load,
    rows,
    save_network,
    serving,
)

from preheat.tensors import Array

pytestmark = pytest.mark.compiles

FROM_ENVIRONMENT = """
    def __init__(self):
        super().__init__()
        import os
        self.settings = {"factor": float(os.environ["FACTOR"])}

    def forward(self, x):
        return x * self.settings["factor"]
"""
GLOBAL_CONSTANT = """
    def forward(self, x):
        return x * FACTOR
"""
CLASS_ATTRIBUTE = """
    import os
    factor = float(os.environ["FACTOR"])

    def forward(self, x):
        return x * self.factor
"""
DEFAULT = """
    import os

    def forward(self, x, factor=float(os.environ["FACTOR"])):
        return x * factor
"""
RANDOM = """
    def forward(self, x):
        return self.layer(x) + torch.rand_like(x)
"""
RETURNS_A_WEIGHT = """
    def forward(self, x):
        return {"sum": self.layer(x), "y": self.layer.weight}
"""
GLOBAL_SET = """
    def forward(self, x):
        return x * (2 if "double" in WISHES else 3)
"""
OF_A_LIBRARY = """
    def forward(self, x):
        return library_of_kept_graphs.scale(x)
"""
TWICE = """
    def forward(self, x):
        y = self.layer(x)
        return {"other": y + 1, "y": y}
"""


class Load:
    """One load of a model: ``traced`` is how many frames dynamo looked at in it."""

    def __init__(self, model: Instances) -> None:
        self.model = model
        self._before = frames()

    @property
    def traced(self) -> int:
        return frames() - self._before

    def answer(self) -> Array:
        return self.model.infer(rows(2))["y"]


def frames() -> int:
    count: int = torch._dynamo.utils.counters["frames"]["total"]
    return count


@contextmanager
def loaded(folder: Path, parameters: dict[str, str] | None = None) -> Iterator[Load]:
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    served = load(folder, parameters=parameters, buckets=buckets(2), cache_path=cache)
    with serving(served) as model:
        yield Load(model)


def kept_in(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("graphs/*.graph"))


@pytest.mark.parametrize(
    "forward", [LINEAR_NETWORK, POINTWISE_NETWORK, TWICE], ids=["linear", "pointwise", "two-outputs"]
)
def test_a_graph_is_found_again_without_tracing(tmp_path: Path, forward: str) -> None:
    save_network(tmp_path, forward)
    with loaded(tmp_path) as first:
        answer = first.answer()
        assert first.traced
    with loaded(tmp_path) as second:
        np.testing.assert_array_equal(second.answer(), answer)
        np.testing.assert_array_equal(second.answer(), answer)
        assert second.traced == 0
        assert [(each.what, each.cached) for each in second.model.take()] == [("x[2,4]", True)]
        # The other way to run it is still there.
        np.testing.assert_allclose(second.model.infer(rows(2), eagerly=True)["y"], answer, rtol=1e-5)
    with loaded(tmp_path) as third:
        np.testing.assert_array_equal(third.answer(), answer)


class Network(torch.nn.Module):
    """What is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": torch.nn.functional.gelu(self.layer(x))}


def test_an_exported_program_is_found_again(tmp_path: Path) -> None:
    exported = torch.export.export(
        Network().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},)
    )
    (tmp_path / "1").mkdir()
    torch.export.save(exported, tmp_path / "1" / "model.pt2")
    with loaded(tmp_path) as first:
        answer = first.answer()
    with loaded(tmp_path) as second:
        np.testing.assert_array_equal(second.answer(), answer)
        assert second.traced == 0


@pytest.mark.parametrize("where", ["attribute", "class", "default", "global"])
def test_a_network_that_was_built_otherwise_is_traced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    forward = {"attribute": FROM_ENVIRONMENT, "class": CLASS_ATTRIBUTE, "default": DEFAULT, "global": GLOBAL_CONSTANT}
    save_network(tmp_path, forward[where])
    model = tmp_path / "1" / "model.py"
    if where == "global":
        model.write_text("import os\nFACTOR = float(os.environ['FACTOR'])\n" + model.read_text())
    for factor, traced in ((2.0, True), (2.0, False), (3.0, True), (3.0, False), (2.0, True)):
        monkeypatch.setenv("FACTOR", str(factor))
        with loaded(tmp_path) as each:
            np.testing.assert_allclose(each.answer(), rows(2)["x"] * factor, rtol=1e-6)
            assert bool(each.traced) == traced


def test_a_network_that_looks_at_what_cannot_be_compared_is_not_kept(tmp_path: Path) -> None:
    save_network(tmp_path, GLOBAL_SET)
    model = tmp_path / "1" / "model.py"
    model.write_text("WISHES = {'double'}\n" + model.read_text())
    with loaded(tmp_path) as each:
        np.testing.assert_allclose(each.answer(), rows(2)["x"] * 2, rtol=1e-6)
    assert kept_in(tmp_path) == []


def test_a_library_that_changed_is_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies outside the model, so the cache's key does not know of it."""
    library = tmp_path / "library"
    library.mkdir()
    monkeypatch.syspath_prepend(library)
    save_network(tmp_path, OF_A_LIBRARY)
    model = tmp_path / "1" / "model.py"
    model.write_text("import library_of_kept_graphs\n" + model.read_text())
    for factor, traced in ((2, True), (2, False), (30, True), (30, False)):
        (library / "library_of_kept_graphs.py").write_text(f"def scale(x):\n    return x * {factor}\n")
        monkeypatch.delitem(sys.modules, "library_of_kept_graphs", raising=False)
        with loaded(tmp_path) as each:
            np.testing.assert_allclose(each.answer(), rows(2)["x"] * factor, rtol=1e-6)
            assert bool(each.traced) == traced


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (COUNTING_NETWORK, "running it changes it"),
        (BREAKING_NETWORK, "it is not one graph"),
        (RANDOM, "it gives another answer each time"),
        (RETURNS_A_WEIGHT, "output 'y' is not computed by the graph"),
    ],
    ids=["changes-itself", "breaks", "random", "a-weight"],
)
def test_what_is_not_one_graph_and_no_more_is_traced_each_time_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, forward: str, why: str
) -> None:
    save_network(tmp_path, forward)
    for _ in range(2):
        with caplog.at_level(logging.INFO, logger="preheat_backends"), loaded(tmp_path) as each:
            each.answer()
            assert each.traced
    assert kept_in(tmp_path) == []
    told = [record.getMessage() for record in caplog.records if "traced at each load" in record.getMessage()]
    assert told == [f"m: the network will be traced at each load, which takes seconds: {why}"] * 2


@pytest.mark.parametrize("parameters", [{"freezing": "true"}, {"dynamic": "true"}], ids=["frozen", "dynamic"])
def test_graphs_that_hold_weights_or_symbols_are_not_kept(tmp_path: Path, parameters: dict[str, str]) -> None:
    save_network(tmp_path, LINEAR_NETWORK)
    with loaded(tmp_path, parameters) as each:
        each.answer()
    assert kept_in(tmp_path) == []


@pytest.mark.parametrize("suffix", [".graph", ".json"])
def test_a_kept_graph_that_cannot_be_read_is_traced_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    save_network(tmp_path, LINEAR_NETWORK)
    with loaded(tmp_path) as first:
        answer = first.answer()
    (path,) = kept_in(tmp_path)
    damaged = path.with_suffix(suffix)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING, logger="preheat_backends"), loaded(tmp_path) as second:
        np.testing.assert_array_equal(second.answer(), answer)
        assert second.traced
    assert "x[2,4]: a kept graph cannot be used, it is traced" in caplog.text
    with loaded(tmp_path) as third:
        np.testing.assert_array_equal(third.answer(), answer)
        assert third.traced == 0


def test_kernels_run_without_the_lock_of_the_interpreter(tmp_path: Path) -> None:
    save_network(tmp_path, POINTWISE_NETWORK)
    with loaded(tmp_path) as first:
        first.answer()
    sources = [path.read_text() for path in (tmp_path / "cache").rglob("*.cpp")]
    assert any("call_without_lock(kernel, " in source for source in sources)
