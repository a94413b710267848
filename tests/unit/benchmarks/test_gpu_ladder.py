"""The ladder of the GPU benchmark: which rungs a device has, what becomes of those that fail, what a page says."""

import json
import sys
from dataclasses import asdict

import pytest
from benchmarks.gpu.jobs import Found
from benchmarks.gpu.ladder import run_apart
from benchmarks.gpu.page import Result, network_section, published_section
from benchmarks.gpu.published import FIGURES
from benchmarks.gpu.rungs import BY_NAME, RUNGS, objection

from preheat_backends.hardware import Device

CPU = Device("cpu", "a CPU")
T4, A100, H100 = (
    Device("cuda:0", model, capability) for model, capability in [("T4", (7, 5)), ("A100", (8, 0)), ("H100", (9, 0))]
)
FP32, BF16 = Found(median_ms=20.0, cosine=1.0), Found(median_ms=5.0, cosine=0.99999, sqnr_db=42.04, peak_mib=2135.6)


def allowed(device: Device) -> set[str]:
    return {rung.name for rung in RUNGS if objection(rung, device) is None}


def test_rungs_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(RUNGS)


def test_a_device_has_the_rungs_that_its_arithmetic_allows() -> None:
    assert allowed(H100) == set(BY_NAME)
    assert allowed(A100) == set(BY_NAME) - {"fp8"}
    assert allowed(T4) == {"fp32"}
    assert allowed(CPU) == {"fp32", "bf16", "compiled", "aot-inductor", "int8"}


def test_why_a_rung_is_not_run_is_said() -> None:
    assert objection(BY_NAME["max-autotune"], CPU) == "not run: needs a GPU"
    assert objection(BY_NAME["fp8"], A100) == ("refused: cuda:0 (A100, compute capability 8.0) does not compute in fp8")


def test_what_was_published_is_of_rungs_that_there_are() -> None:
    assert {name for figures in FIGURES.values() for name in figures} <= set(BY_NAME)


def test_a_section_has_a_row_for_each_rung_whatever_came_of_it() -> None:
    found = {
        "fp32": FP32,
        "bf16": BF16,
        "compiled": Found(failure="OutOfMemoryError: CUDA out of memory"),
        "fp8": Found(failure="not run: needs a GPU"),
    }
    section = network_section("block", 16, [Result(BY_NAME[name], each) for name, each in found.items()], tiny=False)
    assert [row["rung"] for row in section.rows] == list(found)
    assert [row["median ms"] for row in section.rows] == [20.0, 5.0, None, None]
    assert [row["times fp32"] for row in section.rows] == [1.0, 4.0, None, None]
    assert section.rows[1]["SQNR dB"] == 42.0
    assert section.rows[2]["came to"] == "OutOfMemoryError: CUDA out of memory"
    assert section.failures == ["compiled: OutOfMemoryError: CUDA out of memory"], "the other never began"


@pytest.mark.parametrize(("batch", "tiny", "expected"), [(16, False, 25.43), (1, False, None), (16, True, None)])
def test_published_figures_are_beside_those_of_the_same_work_only(
    batch: int, tiny: bool, expected: float | None
) -> None:
    section = network_section("block", batch, [Result(BY_NAME["bf16"], BF16)], tiny=tiny)
    (published,) = (value for name, value in section.rows[0].items() if name.startswith("published"))
    assert published == expected


def test_published_figures_are_said_to_be_others() -> None:
    assert "not measured here" in published_section().title
    assert "A100" in published_section().about


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_what_a_process_found_is_its_last_line() -> None:
    line = json.dumps(asdict(BF16))
    assert run_apart(program(f"print('autotuning'); print('''{line}''')"), limit_s=30) == BF16


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("import os; os.abort()", "its process ended with -6: it said nothing"),
        ("raise SystemExit('no such thing')", "its process ended with 1: no such thing"),
        ("print('nonsense')", "its process answered 'nonsense'"),
        ("pass", "its process answered ''"),
    ],
)
def test_a_process_that_ends_otherwise_is_a_failure(text: str, failure: str) -> None:
    assert run_apart(program(text), limit_s=30) == Found(failure=failure)


def test_a_process_that_takes_too_long_is_ended() -> None:
    assert run_apart(program("import time; time.sleep(60)"), limit_s=0.5) == Found(failure="took more than 0.5 s")
