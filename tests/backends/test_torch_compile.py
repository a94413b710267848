"""What torch_compile promises: a graph for each bucket, nothing compiled in silence, nothing shared by accident."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.backends.compiling import (
    BREAKING_NETWORK,
    COUNTING_NETWORK,
    LINEAR_NETWORK,
    SEQUENCES,
    SQUARE,
    Instances,
    buckets,
    load,
    rows,
    save_network,
    sequences,
    serving,
)

from preheat.backend import Dimension, Outside, Signature, TensorSpec
from preheat.compilations import CompilationKind
from preheat.errors import ExecutionFailed, InvalidConfig
from preheat.scheduling.pacing import Pacer
from preheat.tensors import DataType
from preheat_backends.torch_compile.inductor import MOST_GRAPHS

pytestmark = pytest.mark.compiles


def kinds(instances: Instances) -> list[CompilationKind]:
    return [compilation.kind for compilation in instances.take()]


@contextmanager
def switching_threads_often() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


# --- Buckets -----------------------------------------------------------------------------------------------------


def test_every_bucket_is_one_graph_that_is_stated_once_with_its_shapes(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, buckets=buckets(1, 4))) as model:
        for count in (1, 4, 1, 4):
            model.infer(rows(count))
        first, second = model.take()
    assert [first.what, second.what] == ["x[1,4]", "x[4,4]"]
    assert first.kind is second.kind is CompilationKind.GRAPH
    assert first.seconds > 0


def test_what_paces_a_load_is_taken_for_no_part_of_the_network(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    pace = Pacer(0.9, in_use=lambda: True).paced
    with serving(load(folder, buckets=buckets(1, 4), parameters={"fullgraph": "true"}), pace=pace) as model:
        for count in (1, 4, 1, 4):
            model.infer(rows(count))
        assert [each.what for each in model.take()] == ["x[1,4]", "x[4,4]"]


@pytest.mark.parametrize("index", ["x", "x.float().mul(1.0).long()"], ids=["given", "computed"])
def test_an_index_out_of_bounds_is_an_error_of_its_request_and_does_not_end_the_process(
    tmp_path: Path, index: str
) -> None:
    # Large enough for kernels of several threads, which torch would let the error escape from.
    datatype = DataType.INT64 if index == "x" else DataType.FP32
    signature = Signature(
        (TensorSpec("x", datatype, (Dimension.fixed(4),)),),
        (TensorSpec("y", DataType.FP32, (Dimension.fixed(4), Dimension.fixed(4096))),),
        4,
    )
    folder = save_network(tmp_path, f"def forward(self, x): return torch.nn.functional.gelu(self.table[{index}]) * 2")
    source = (folder / "1" / "model.py").read_text()
    table = 'self.register_buffer("table", torch.ones(100, 4096))'
    (folder / "1" / "model.py").write_text(source.replace("self.layer = torch.nn.Linear(4, 4)", table, 1))
    with serving(load(folder, signature, buckets=buckets(4), threads=2), threads=2) as model:
        assert model.infer({"x": np.full((4, 4), 99, datatype.numpy)})["y"].shape == (4, 4, 4096)
        with pytest.raises(ExecutionFailed, match="index out of bounds"):
            model.infer({"x": np.full((4, 4), 100, datatype.numpy)})
        assert model.infer({"x": np.full((4, 4), 99, datatype.numpy)})["y"].shape == (4, 4, 4096)


def test_a_varying_dimension_with_buckets_is_compiled_for_each_of_its_sizes(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, SEQUENCES, buckets=buckets(1, 2, sizes={"sequence": (8, 16)}))) as model:
        for count, length in ((1, 8), (1, 16), (2, 8), (2, 16), (1, 8)):
            assert model.infer(sequences(count, length))["y"].shape == (count, length, 4)
        assert [each.what for each in model.take()] == ["x[1,8,4]", "x[1,16,4]", "x[2,8,4]", "x[2,16,4]"]


def test_a_varying_dimension_without_buckets_is_refused_saying_what_would_do(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    message = (
        r"input 'x': its dimension sequence\(1\.\.64\) varies.* preheat\.buckets\.sequence, .*dynamic: true, or fix"
    )
    with pytest.raises(InvalidConfig, match=message):
        load(folder, SEQUENCES)
    with pytest.raises(InvalidConfig, match=message):
        load(folder, SEQUENCES, buckets=buckets(1, 8, sizes={"width": (8,)}))
    unnamed = Signature((TensorSpec("x", DataType.FP32, (Dimension(minimum=1),)),), SQUARE.outputs, 8)
    with pytest.raises(
        InvalidConfig, match=r"name it by preheat\.shape\.x and list the sizes .* preheat\.buckets\.NAME"
    ):
        load(folder, unnamed)


def test_with_dynamic_one_graph_serves_all_sizes_but_one(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    model = load(folder, SEQUENCES, parameters={"dynamic": "true"}, buckets=buckets(1, 8))
    assert not model.specializes_on_shape
    with serving(model) as instances:
        for count, length in ((8, 64), (2, 3), (8, 8), (1, 5), (1, 64)):
            instances.infer(sequences(count, length))
        assert [each.what for each in instances.take()] == ["x[*,*,4]", "x[1,*,4]"]


def test_with_dynamic_a_dimension_needs_no_bound(tmp_path: Path) -> None:
    open_ended = (Dimension("sequence", minimum=1), Dimension.fixed(4))
    signature = Signature(
        (TensorSpec("x", DataType.FP32, open_ended),), (TensorSpec("y", DataType.FP32, open_ended),), 8
    )
    # A network of its own: torch would find the graph of another, and take over its bounds.
    folder = save_network(tmp_path, "def forward(self, x): return self.layer(x) * 3.25")
    with serving(load(folder, signature, parameters={"dynamic": "true"}, buckets=buckets(1, 8))) as instances:
        for count, length in ((2, 3), (8, 1000)):
            assert instances.infer(sequences(count, length))["y"].shape == (count, length, 4)
        assert [each.what for each in instances.take()] == ["x[*,*,4]"]


def test_eighteen_buckets_three_instances_and_three_reloads_share_no_limit(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    served = buckets(1, 2, 8, sizes={"sequence": (1, 2, 4, 8, 16, 32)})
    for _ in range(3):
        with serving(load(folder, SEQUENCES, buckets=served, instances=3), 3) as model:
            for count in served.rows:
                for length in served.sizes["sequence"]:
                    model.infer_everywhere(sequences(count, length))
            assert kinds(model) == [CompilationKind.GRAPH] * 18


def test_models_that_compile_while_others_run_lose_no_graph(tmp_path: Path) -> None:
    """The interpreter changes threads as often as it can, so that a call is interrupted anywhere."""
    folder = save_network(tmp_path, LINEAR_NETWORK)
    stop = threading.Event()

    def run(model: Instances) -> None:
        while not stop.is_set():
            model.infer(rows(2))

    with (
        serving(load(folder, buckets=buckets(2))) as running,
        serving(load(folder, buckets=buckets(*range(2, 10)))) as compiling,
        ThreadPoolExecutor(1) as pool,
        switching_threads_often(),
    ):
        running.infer(rows(2))
        assert kinds(running) == [CompilationKind.GRAPH]
        runs = pool.submit(run, running)
        for _ in range(3):
            for count in range(2, 10):
                compiling.infer(rows(count))
        stop.set()
        runs.result()
        assert kinds(running) == []
        assert kinds(compiling) == [CompilationKind.GRAPH] * 8


def test_closing_a_model_leaves_the_graphs_of_another_alone(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, buckets=buckets(2))) as model:
        with serving(load(folder, buckets=buckets(2))) as other:
            other.infer(rows(2))
            model.infer(rows(2))
            model.take()
        model.infer(rows(2))
        assert model.take() == []


def test_graphs_that_break_have_a_limit_for_all_buckets_too(tmp_path: Path) -> None:
    folder = save_network(tmp_path, BREAKING_NETWORK)
    served = buckets(1, 2, 8, sizes={"sequence": (1, 2, 4, 8)})
    with serving(load(folder, SEQUENCES, buckets=served)) as model:
        for count in served.rows:
            for length in served.sizes["sequence"]:
                model.infer(sequences(count, length))
        assert kinds(model) == [CompilationKind.GRAPH] * 24
        model.infer(sequences(8, 8))
        assert kinds(model) == []


def test_shapes_outside_the_buckets_have_a_limit_and_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preheat_backends.torch_compile.variants.OUTSIDE", 2)
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, buckets=buckets(8, outside=Outside.COMPILE))) as model:
        for count in (8, 3, 5):
            model.infer(rows(count))
        assert [each.what for each in model.take()] == ["x[8,4]", "x[3,4]", "x[5,4]"]
        with pytest.raises(
            ExecutionFailed, match=r"no graph for x\[6,4\], and the limit of 3 for this model is reached"
        ):
            model.infer(rows(6))
        model.infer(rows(5))
        assert model.take() == []


# --- Uncompiled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_runs_eagerly_on_the_same_weights_with_the_same_casts(tmp_path: Path, dtype: str) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    model = load(folder, parameters={"dtype": dtype}, buckets=buckets(2))
    assert model.runs_eagerly
    with serving(model) as instances:
        eager = instances.infer(rows(2), eagerly=True)["y"]
        assert instances.infer(rows(3), eagerly=True)["y"].shape == (3, 4)
        assert instances.take() == []
        compiled = instances.infer(rows(2))["y"]
        assert kinds(instances) == [CompilationKind.GRAPH]
    assert eager.dtype == compiled.dtype == np.float32
    np.testing.assert_allclose(eager, compiled, rtol=1e-2 if dtype == "bf16" else 1e-6)


# --- The proof ---------------------------------------------------------------------------------------------------


def test_instances_that_need_the_same_graph_at_once_compile_it_once(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, buckets=buckets(2), instances=3), 3) as model:
        model.infer_everywhere(rows(2))
        assert kinds(model) == [CompilationKind.GRAPH]


def test_a_graph_that_is_compiled_again_is_stated_with_the_guard_that_failed(tmp_path: Path) -> None:
    folder = save_network(tmp_path, COUNTING_NETWORK)
    with serving(load(folder, buckets=buckets(2))) as model:
        model.infer(rows(2))
        model.take()
        model.infer(rows(2))
        (again,) = model.take()
    assert again.kind is CompilationKind.GRAPH
    assert again.what.startswith("x[2,4]: graph 2: again, since ")
    assert "calls" in again.what


def test_a_network_that_needs_ever_more_graphs_fails_and_does_not_run_eagerly(tmp_path: Path) -> None:
    folder = save_network(tmp_path, COUNTING_NETWORK)
    with serving(load(folder, buckets=buckets(2))) as model:
        for _ in range(MOST_GRAPHS):
            model.infer(rows(2))
        with pytest.raises(ExecutionFailed, match="the network needs more than 32 graphs of one function"):
            model.infer(rows(2))
        assert kinds(model) == [CompilationKind.GRAPH] * MOST_GRAPHS


def test_a_broken_network_states_each_of_its_graphs_and_logs_why_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_network(tmp_path, BREAKING_NETWORK)
    with (
        caplog.at_level(logging.WARNING, logger="preheat_backends"),
        serving(load(folder, buckets=buckets(1, 2))) as model,
    ):
        model.infer(rows(1))
        assert [each.what for each in model.take()] == ["x[1,4]", "x[1,4]: graph 2"]
        model.infer(rows(2))
        second = [each.what for each in model.take()]
    # The functions are the same for all sizes.
    assert [each.split(": again, since ")[0] for each in second] == ["x[2,4]", "x[2,4]: graph 2"]
    assert "size mismatch" in second[0]
    (record,) = [record for record in caplog.records if record.name.startswith("preheat_backends")]
    text = record.getMessage()
    assert text.startswith(
        "m: the network compiles as 2 graphs, with Python in between: Call to `torch._dynamo.graph_break()`"
    )
    assert "fullgraph: true" in text
    assert "\n" not in text


def test_instances_that_compile_a_broken_network_again_and_again_do_not_wait_for_each_other_for_ever(
    tmp_path: Path,
) -> None:
    forward = """
    def forward(self, x):
        y = self.layer(x)
        torch._dynamo.graph_break()
        self.calls = getattr(self, "calls", 0) + 1
        return y * self.calls
    """
    with serving(load(save_network(tmp_path, forward), buckets=buckets(1, 2)), 4) as model:
        for count in (1, 2):
            assert len(model.infer_everywhere(rows(count))) == 4


def test_with_fullgraph_a_break_is_an_error_that_names_its_reason(tmp_path: Path) -> None:
    folder = save_network(tmp_path, BREAKING_NETWORK)
    with serving(load(folder, parameters={"fullgraph": "true"}, buckets=buckets(1))) as model:
        message = (
            r"not compile as one graph, .* fullgraph .*: Call to `torch\._dynamo\.graph_break\(\)`.* at .*model\.py:\d"
        )
        with pytest.raises(ExecutionFailed, match=message):
            model.infer(rows(1))
        assert model.take() == []


def test_code_that_dynamo_gives_up_is_stated_as_eager(tmp_path: Path) -> None:
    forward = """
        def inner(self, x):
            with open("/dev/null"):
                return torch.relu(x) if len(x) else x

        def forward(self, x):
            x = self.layer(x)
            torch._dynamo.graph_break()
            for _ in range(1):
                x = self.inner(x)
            return x
    """
    folder = save_network(tmp_path, forward)
    with serving(load(folder, buckets=buckets(1))) as model:
        model.infer(rows(1))
        eager = [each for each in model.take() if each.kind is CompilationKind.EAGER]
        assert eager
        assert all("model.py" in each.what and "runs uncompiled: " in each.what for each in eager)
        model.infer(rows(1))
        assert model.take() == []


def test_a_network_of_which_nothing_compiles_is_an_error(tmp_path: Path) -> None:
    forward = """
        def forward(self, x):
            with open("/dev/null"):
                return x.sum(1).tolist() and x
    """
    folder = save_network(tmp_path, forward)
    with (
        serving(load(folder, buckets=buckets(1))) as model,
        pytest.raises(ExecutionFailed, match=r"nothing of the network compiles: .*backend eager would"),
    ):
        model.infer(rows(1))


# --- State of the process ----------------------------------------------------------------------------------------


def in_a_thread(action: Callable[[], None]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


@pytest.fixture
def other_settings() -> Iterator[Callable[[], None]]:
    """Another model's code, as it changes torch's settings on its own thread; undone after the test."""

    def change() -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("cpu")
        torch.set_grad_enabled(True)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)

    yield change
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(mode=False)
    torch.set_num_threads(1)


def test_what_another_model_sets_for_the_process_compiles_nothing_again(
    tmp_path: Path, other_settings: Callable[[], None]
) -> None:
    folder = save_network(tmp_path, "def forward(self, x):\n    return self.layer(x) + torch.ones(4)")
    with serving(load(folder, buckets=buckets(2))) as model:
        before = model.infer(rows(2))["y"]
        model.take()
        in_a_thread(other_settings)
        after = model.infer(rows(2))["y"]
        assert model.take() == []
    assert after.dtype == np.float32
    np.testing.assert_array_equal(before, after)


def test_a_reset_of_torch_by_another_model_is_stated_as_compilations(tmp_path: Path) -> None:
    folder = save_network(tmp_path, LINEAR_NETWORK)
    with serving(load(folder, buckets=buckets(2))) as model:
        first = model.infer(rows(2))["y"]
        model.take()
        in_a_thread(torch._dynamo.reset)
        np.testing.assert_array_equal(model.infer(rows(2))["y"], first)
        (again,) = model.take()
        assert again.kind is CompilationKind.GRAPH
        assert again.seconds < 60
        model.infer(rows(2))
        assert model.take() == []


def test_where_it_cannot_be_prevented_it_is_stated(tmp_path: Path, other_settings: Callable[[], None]) -> None:
    folder = save_network(tmp_path, BREAKING_NETWORK)
    with serving(load(folder, buckets=buckets(2))) as model:
        model.infer(rows(2))
        model.take()
        in_a_thread(other_settings)
        model.infer(rows(2))
        stated = model.take()
    assert [each.kind for each in stated] == [CompilationKind.GRAPH] * 2
    assert all("again, since" in each.what and "GLOBAL_STATE changed" in each.what for each in stated)


# --- Outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freezing", ["false", "true"])
def test_outputs_that_are_weights_constants_or_inputs_are_the_callers_own(tmp_path: Path, freezing: str) -> None:
    forward = """
        def forward(self, x):
            constant = torch.tensor([1.0, 2.0])
            weight = self.layer.weight
            folded = weight @ weight
            own = {"weight": weight, "folded": folded, "constant": constant, "plain": self.plain}
            return {"y": self.layer(x), "view": x[:, :2], **own}
    """
    names = ("y", "weight", "folded", "constant", "view", "plain")
    outputs = tuple(TensorSpec(name, DataType.FP32, (Dimension(),)) for name in names)
    folder = save_network(tmp_path, forward)
    code = folder / "1" / "model.py"
    layer = "self.layer = torch.nn.Linear(4, 4)"
    code.write_text(code.read_text().replace(layer, f"{layer}; self.plain = torch.ones(2, 2)"))
    given = rows(2)
    with serving(load(folder, Signature(SQUARE.inputs, outputs, 8), parameters={"freezing": freezing})) as model:
        first = model.infer(given)
        expected = {name: array.copy() for name, array in first.items()}
        model.infer(rows(2, seed=1))
        for name, array in first.items():
            np.testing.assert_array_equal(array, expected[name])
            array[...] = 7
        second = model.infer(given)
        assert len(model.take()) == 1
    for name, array in second.items():
        np.testing.assert_array_equal(array, expected[name])
    np.testing.assert_array_equal(given["x"], rows(2)["x"])
