"""What each thread records, without a GPU: the program below is a stand-in that runs as it is."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.backends.cases import LINEAR, make_source, save_linear_python

from preheat.backend import Buckets
from preheat.compilations import Compilation, CompilationKind, recording
from preheat.errors import InvalidConfig
from preheat_backends.torch_compile.cuda_graphs import RecordedProgram, refuse_one_thread_only
from preheat_backends.torch_compile.variants import Variants
from preheat_backends.torch_programs.python_module import load_python_module, load_weights


@pytest.fixture
def program(tmp_path: Path) -> Iterator[RecordedProgram]:
    save_linear_python(tmp_path)
    inner = load_python_module(
        tmp_path / "model.py",
        outputs=("y",),
        device=torch.device("cpu"),
        weights=partial(load_weights, backend="torch_compile"),
    )
    program = RecordedProgram(inner, Variants(LINEAR, Buckets((1, 2)), dynamic=False))
    yield program
    program.close()


def stated(program: RecordedProgram, *rows: int) -> list[str]:
    seen: list[Compilation] = []
    with recording(seen.append):
        for count in rows:
            program.run({"x": torch.zeros(count, 4)})
    assert {each.kind for each in seen} <= {CompilationKind.CUDA_GRAPH}
    return [each.what for each in seen]


def test_a_thread_states_the_two_runs_until_a_graph_is_recorded_and_no_more(program: RecordedProgram) -> None:
    assert stated(program, 1, 2, 1, 1) == ["x[1,4]", "x[2,4]", "x[1,4]"]
    assert stated(program, 2, 2, 1) == ["x[2,4]"]


def test_each_thread_records_for_itself(program: RecordedProgram) -> None:
    assert stated(program, 1, 1, 1) == ["x[1,4]"] * 2
    with ThreadPoolExecutor(1) as other:
        assert other.submit(stated, program, 1, 1, 1).result() == ["x[1,4]"] * 2
        assert other.submit(stated, program, 1).result() == []


@pytest.mark.parametrize(
    ("version", "instances", "refused"),
    [
        ("2.11.0+cu130", 2, True),
        ("2.12.1", 2, True),
        ("2.11.0", 1, True),
        ("2.13.0+cpu", 2, False),
        ("3.0.0", 2, False),
    ],
)
def test_graphs_are_refused_where_only_the_first_thread_can_record(
    version: str, instances: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    source = make_source(tmp_path, device="cuda:0", instances=instances)
    if not refused:
        refuse_one_thread_only(source, "mode", "reduce-overhead")
        return
    with pytest.raises(
        InvalidConfig, match=r"mode: 'reduce-overhead': torch .* first thread of a process only.*torch 2\.13"
    ):
        refuse_one_thread_only(source, "mode", "reduce-overhead")
