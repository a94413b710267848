"""The compile cache of torch_compile: all that a model needs is in its own folder, wherever that lies."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.backends.cases import make_source
from tests.backends.compiling import (
    POINTWISE_NETWORK,
    Instances,
    buckets,
    load,
    rows,
    save_network,
    serving,
)
from torch._inductor import cpu_vec_isa

from preheat_backends.torch_compile import TorchCompileBackend, cache
from preheat_backends.torch_compile.cache import caching_in
from preheat_backends.torchao import TorchaoBackend

pytestmark = pytest.mark.compiles


def cached(model: Instances) -> list[bool]:
    return [compilation.cached for compilation in model.take()]


def cache_places() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.endswith("_CACHE_DIR")}


def libraries(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*.so")}


def load_in_another_process(folder: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.backends.load_compiled", str(folder), str(cache), "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return json.loads(told)


def test_each_of_two_equal_models_finds_all_it_needs_in_its_own_folder(tmp_path: Path) -> None:
    """They are compiled in one process, where the second could take the first one's kernels from memory."""
    folder = save_network(tmp_path / "m", POINTWISE_NETWORK)
    before = cache_places()
    answers = {}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with serving(load(folder, buckets=buckets(2), cache_path=tmp_path / name)) as model:
            answers[name] = model.infer(rows(2))["y"].tolist()
            assert cached(model) == [False]
    assert cache_places() == before
    moved = (tmp_path / "second").rename(tmp_path / "moved")
    folders = {"first": tmp_path / "first", "second": moved}
    processes = {name: load_in_another_process(folder, folders[name]) for name in folders}
    told = {name: result(process) for name, process in processes.items()}
    for name in folders:
        stated = [["graph", "x[2,4]", True]]
        assert told[name] == {"answer": answers[name], "stated": stated, "compiled": [], "traced": 0}


@pytest.fixture
def tried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a process that has tried the instruction sets of this CPU out, and does so no more."""
    if not cpu_vec_isa.valid_vec_isa_list():
        pytest.skip("torch knows of no instruction set of this CPU that would have to be tried out")
    monkeypatch.delenv("TORCHINDUCTOR_VEC_ISA_OK", raising=False)
    monkeypatch.setattr(cache, "_instruction_set_programs", None)
    with caching_in(tmp_path / "first", on_cpu=True):
        pass
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda *_: pytest.fail("tried out again"))
    return tmp_path / "first"


def test_instruction_sets_are_tried_out_once_in_a_process(tried_out: Path, tmp_path: Path) -> None:
    with caching_in(tmp_path / "second", on_cpu=True):
        cpu_vec_isa.pick_vec_isa()
    assert libraries(tmp_path / "second") == libraries(tried_out) != set()
    with caching_in(tmp_path / "of a GPU", on_cpu=False):
        assert libraries(tmp_path / "of a GPU") == set()


def test_a_folder_that_was_half_filled_when_a_server_crashed_is_filled(tried_out: Path, tmp_path: Path) -> None:
    for cut in (True, False):
        with caching_in(tmp_path / "second", on_cpu=True):
            pass
        for library in libraries(tmp_path / "second"):
            if cut:
                (tmp_path / "second" / library).write_bytes(b"\x7fELF")
            else:
                (tmp_path / "second" / library).unlink()
    with caching_in(tmp_path / "second", on_cpu=True):
        pass
    for library in libraries(tried_out):
        assert (tmp_path / "second" / library).read_bytes() == (tried_out / library).read_bytes()


def test_kernels_of_frozen_weights_are_found_again_though_their_graphs_are_not(tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", POINTWISE_NETWORK)
    (tmp_path / "cache").mkdir()
    for expected in (False, True):
        model = load(folder, parameters={"freezing": "true"}, buckets=buckets(2), cache_path=tmp_path / "cache")
        with serving(model) as instances:
            instances.infer(rows(2))
            assert cached(instances) == [expected]


@pytest.mark.parametrize(
    ("parameters", "given"), [({}, False), ({"compile": "true"}, True)], ids=["not-compiled", "compiled"]
)
def test_torchao_has_an_environment_only_if_it_compiles(
    tmp_path: Path, parameters: dict[str, str], given: bool
) -> None:
    source = make_source(tmp_path, parameters={"quantization": "int8_dynamic", **parameters})
    assert (TorchaoBackend().environment(source) is not None) == given


def test_the_environment_names_what_compiled_code_depends_on(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    environment = TorchCompileBackend().environment(source)
    for fact in ("torch 2.", "torchao ", "python cpython-", "compiler ", "cpu ", "threads 1"):
        assert fact in environment
    assert environment == TorchCompileBackend().environment(source)
    assert environment != TorchCompileBackend().environment(dataclasses.replace(source, threads=2))
