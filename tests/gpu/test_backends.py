"""What every backend promises the server, on a GPU.

Not run on a GPU yet: see docs/support-matrix.md.
"""

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import pytest
import torch
from tests.e2e.server_process import ServerProcess, write_model
from tests.gpu.networks import (
    CASES,
    DEVICE,
    MAX_BATCH,
    WEIGHT_BYTES,
    Case,
    load,
    make_backend,
    make_inputs,
    right_answer,
)

from preheat.backend import Instance, Model, TensorSession
from preheat.compilations import Compilation, recording
from preheat.errors import BackendMissing
from preheat.tensors import Array
from preheat_backends.hardware import find_device, supports

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    # Libraries have much to say on a GPU, of TF32 that is off among other things.
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(600),
]

T = TypeVar("T")
Build: TypeAlias = Callable[[Case], Path]
ROWS = (1, 2, 3, MAX_BATCH)
# Before, torch records CUDA graphs on one thread of the process, and the backend refuses them.
GRAPHS_BY_THREAD = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
needs_graphs = pytest.mark.skipif(not GRAPHS_BY_THREAD, reason="CUDA graphs are refused before torch 2.13")


def parametrize(cases: list[Case]) -> pytest.MarkDecorator:
    marked = [
        pytest.param(case, id=case.id, marks=[pytest.mark.compiles] * case.compiles + [needs_graphs] * case.records)
        for case in cases
    ]
    return pytest.mark.parametrize("case", marked)


all_cases = parametrize(list(CASES))
cases_that_record = parametrize([case for case in CASES if case.records])
cases_that_torch_counts = parametrize([case for case in CASES if case.by_torch])


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """A folder with a case's artifact; made once for all cases that take the same."""
    made: dict[object, Path] = {}

    def find(case: Case) -> Path:
        if case.build not in made:
            folder = tmp_path_factory.mktemp("artifact")
            case.build(folder)
            made[case.build] = folder
        return made[case.build]

    return find


@pytest.fixture
def build(artifacts: Callable[[Case], Path], tmp_path: Path) -> Build:
    """Put a case's artifact into a new model folder, or skip what this GPU or these libraries do not have."""

    def build_model(case: Case) -> Path:
        skip_unless_possible(case)
        shutil.copytree(artifacts(case), tmp_path / "m" / "1")
        return tmp_path / "m"

    return build_model


def skip_unless_possible(case: Case) -> None:
    device = find_device(DEVICE)
    if not supports(device, case.arithmetic):
        pytest.skip(f"{device} does not compute in {case.arithmetic.value}")
    if case.id.startswith("torchao"):
        pytest.importorskip("torchao")
    if case.id.startswith("onnxruntime"):
        library = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in library.get_available_providers():
            pytest.skip("this onnxruntime is built for the CPU: install onnxruntime-gpu in its place")


class InstanceThread:
    """A session on a thread of its own, as in the server. ``close`` ends both."""

    def __init__(self, model: Model, ordinal: int = 0, *, device: str = DEVICE) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"instance {ordinal}")
        self.session: TensorSession = self.call(lambda: open_session(model, ordinal, device))

    def call(self, work: Callable[[], T]) -> T:
        return self.start(work).result()

    def start(self, work: Callable[[], T]) -> "Future[T]":
        return self._executor.submit(work)

    def infer(self, rows: int, seed: int = 0) -> Array:
        """The answer, where the session left it."""
        return self.call(lambda: self.session.infer(make_inputs(rows, seed))["y"])

    def check(self, case: Case, rows: int, seed: int = 0) -> None:
        assert_right(self.infer(rows, seed), case, rows, seed)

    def close(self) -> None:
        self.call(self.session.close)
        self._executor.shutdown()


def open_session(model: Model, ordinal: int, device: str) -> TensorSession:
    session = model.open(Instance(ordinal, device, 1))
    assert isinstance(session, TensorSession)
    return session


@contextmanager
def instances(model: Model, count: int = 1, *, device: str = DEVICE) -> Iterator[list[InstanceThread]]:
    """As many instances of ``model``; closes them and it."""
    opened = [InstanceThread(model, ordinal, device=device) for ordinal in range(count)]
    try:
        yield opened
    finally:
        for instance in opened:
            instance.close()
        model.close()


def assert_right(answer: Array, case: Case, rows: int, seed: int = 0) -> None:
    expected = right_answer(make_inputs(rows, seed))
    assert answer.dtype == expected.dtype
    assert answer.shape == expected.shape
    assert np.linalg.norm(answer - expected) <= case.tolerance * np.linalg.norm(expected)


def allocated_bytes() -> int:
    """What torch has on the GPU, less what its matrix products keep to work with, which it keeps for each stream."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated(DEVICE)


# --- Answers -----------------------------------------------------------------------------------------------------


@all_cases
def test_answers_are_right_at_every_batch_size(case: Case, build: Build) -> None:
    with instances(load(case, build(case))) as (instance,):
        for _ in range(3):  # CUDA graphs are warmed, recorded and replayed
            for rows in ROWS:
                instance.check(case, rows, seed=rows)


@all_cases
def test_inputs_come_from_where_the_server_puts_them(case: Case, build: Build) -> None:
    """In memory that the session gave, and which the next batch has too."""
    with instances(load(case, build(case))) as (instance,):
        staging = instance.call(lambda: instance.session.allocate(make_inputs(MAX_BATCH)["x"].nbytes))
        assert staging.ctypes.data % 64 == 0
        for seed in range(6):
            inputs = make_inputs(MAX_BATCH, seed)["x"]
            room = staging.view(np.float32).reshape(inputs.shape)
            room[...] = inputs
            answers = instance.call(partial(instance.session.infer, {"x": room}))
            assert_right(answers["y"], case, MAX_BATCH, seed)
            np.testing.assert_array_equal(room, inputs)


@all_cases
def test_two_instances_answer_at_once(case: Case, build: Build) -> None:
    with instances(load(case, build(case), instances=2), 2) as pair:
        for rows in ROWS:
            pair[0].check(case, rows)
            pair[1].check(case, rows)
        together = threading.Barrier(2)

        def ask(instance: InstanceThread, first: int) -> None:
            together.wait()
            for seed in range(first, first + 40):
                rows = ROWS[seed % len(ROWS)]
                assert_right(instance.session.infer(make_inputs(rows, seed))["y"], case, rows, seed)

        asked = [each.start(partial(ask, each, 100 * number)) for number, each in enumerate(pair)]
        for future in asked:
            future.result()


@all_cases
def test_an_answer_stays_while_another_instance_answers(case: Case, build: Build) -> None:
    with instances(load(case, build(case), instances=2), 2) as (one, other):
        for _ in range(3):
            first = one.infer(MAX_BATCH, seed=1)
            for seed in range(2, 6):
                other.infer(MAX_BATCH, seed)
            assert_right(first, case, MAX_BATCH, seed=1)


@all_cases
def test_an_answer_may_be_written_to(case: Case, build: Build) -> None:
    with instances(load(case, build(case))) as (instance,):
        for _ in range(4):
            answer = instance.infer(2)
            assert_right(answer, case, 2)
            answer[...] = 7


def test_one_instance_waits_for_the_gpu_without_pythons_lock(build: Build) -> None:
    """So that another can copy and start its batch meanwhile."""
    case = CASES[0]
    with instances(load(case, build(case))) as (instance,):
        instance.infer(MAX_BATCH)

        begun = threading.Event()

        def wait_long() -> None:
            with instance.session._transfers.running():  # type: ignore[attr-defined]
                torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]
                begun.set()

        waiting = instance.start(wait_long)
        begun.wait()
        # Held during the wait, the lock would be free again only when it is over.
        turns = sum(1 for _ in iter(waiting.done, True))
        assert turns > 1000


# --- CUDA graphs -------------------------------------------------------------------------------------------------


@cases_that_record
def test_graphs_are_recorded_on_the_instances_own_thread(case: Case, build: Build) -> None:
    with instances(load(case, build(case))) as (instance,):
        for _ in range(3):
            for rows in ROWS:
                instance.infer(rows)
        recorded = instance.call(recorded_graphs)
        assert recorded >= len(ROWS)
        for seed in range(20):
            rows = ROWS[seed % len(ROWS)]
            instance.check(case, rows, seed)
        assert instance.call(recorded_graphs) == recorded, "graphs were recorded for shapes that had theirs"
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(recorded_graphs).result() == 0


@cases_that_record
@pytest.mark.parametrize(
    "number",
    [
        1,
        2,
    ],
)
def test_a_session_that_states_no_compilation_any_more_has_recorded_its_graphs(
    case: Case, build: Build, number: int
) -> None:
    """The server warms until a full pass states nothing: then it says that the model is ready."""
    with instances(load(case, build(case), instances=number), number) as opened:
        for instance in opened:
            while instance.call(partial(compilations_of_a_pass, instance.session)):
                pass
        recorded = opened[-1].call(recorded_graphs)
        for rows in ROWS:
            opened[-1].check(case, rows)
        assert opened[-1].call(recorded_graphs) == recorded


def compilations_of_a_pass(session: TensorSession) -> int:
    stated: list[Compilation] = []
    with recording(stated.append):
        for rows in ROWS:
            session.infer(make_inputs(rows))
    return len(stated)


def recorded_graphs() -> int:
    """How many this thread has."""
    from torch._inductor import cudagraph_trees

    if not hasattr(cudagraph_trees.local, "tree_manager_containers"):
        return 0
    manager = cudagraph_trees.get_manager(torch.device(DEVICE).index, create_if_none_exists=False)
    return 0 if manager is None else sum(len(nodes) for nodes in manager.roots.values())


# --- Placement and memory ----------------------------------------------------------------------------------------


@cases_that_torch_counts
def test_weights_are_on_the_gpu_until_the_model_is_closed(case: Case, build: Build) -> None:
    folder = build(case)
    before = allocated_bytes()
    model = load(case, folder)
    with instances(model) as (instance,):
        for _ in range(3):
            instance.infer(MAX_BATCH)
        # In 8 bits they are a quarter.
        assert allocated_bytes() - before >= WEIGHT_BYTES // 4
    del model, instance
    assert allocated_bytes() - before < WEIGHT_BYTES // 8


def test_a_model_on_the_cpu_has_nothing_on_the_gpu(build: Build) -> None:
    case = CASES[0]
    before = allocated_bytes()
    with instances(load(case, build(case), device="cpu"), device="cpu") as (instance,):
        instance.check(case, 2)
        assert allocated_bytes() == before


@all_cases
def test_a_gpu_that_is_not_there_is_refused(case: Case, build: Build) -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(BackendMissing, match=absent):
        load(case, build(case), device=absent)


@all_cases
def test_a_backend_finds_the_gpu(case: Case) -> None:
    skip_unless_possible(case)
    assert {"cpu", DEVICE} <= set(make_backend(case).hardware().devices)


WHERE_SOURCE = """
import torch

class Where(torch.nn.Module):
    def forward(self, INPUT0):
        return torch.full_like(INPUT0, float(INPUT0.is_cuda))

def build_model():
    return Where()
"""
WHERE_CONFIG = """
backend: "eager"
max_batch_size: 4
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 2 ] }
"""


@pytest.mark.parametrize(
    ("group", "on_gpu"), [("kind: KIND_CPU", 0), ("kind: KIND_GPU", 1), ("kind: KIND_GPU gpus: [ 0 ]", 1), ("", 1)]
)
def test_a_server_places_instances_as_their_group_says(group: str, on_gpu: int, tmp_path: Path) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    groups = f"instance_group [ {{ {group} }} ]\n" if group else ""
    folder = write_model(tmp_path, "where", WHERE_CONFIG + groups)
    (folder / "1" / "model.py").write_text(WHERE_SOURCE)
    given = grpcclient.InferInput("INPUT0", [1, 2], "FP32")
    given.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with (
        ServerProcess(tmp_path, limit_s=120) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        assert client.infer("where", [given]).as_numpy("OUTPUT0").tolist() == [[on_gpu, on_gpu]]
