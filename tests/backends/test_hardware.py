"""The hardware gate: every arithmetic on every device, and what a refusal says."""

import logging
from pathlib import Path

import pytest
from tests.backends.cases import make_source

from preheat.errors import BackendMissing, InvalidConfig
from preheat_backends import hardware
from preheat_backends.hardware import Arithmetic, Device, find_device, require, supports

PLAIN_CPU = Device("cpu", "Old CPU", instructions=frozenset({"avx2"}))
RICH_CPU = Device("cpu", "New CPU", instructions=frozenset({"avx2", "avx512_vnni", "amx_bf16", "amx_int8"}))
EVERYWHERE = {Arithmetic.FP32, Arithmetic.FP16}
ON_TURING = EVERYWHERE | {Arithmetic.INT8, Arithmetic.FP8_WEIGHT_ONLY}
ON_AMPERE = ON_TURING | {Arithmetic.TF32, Arithmetic.BF16, Arithmetic.INT4_WEIGHT_ONLY}
ON_CPU = set(Arithmetic) - {Arithmetic.TF32, Arithmetic.FP8}
EXPECTED = {
    (6, 0): EVERYWHERE,
    (7, 0): EVERYWHERE,
    (7, 5): ON_TURING,
    (8, 0): ON_AMPERE,
    (8, 6): ON_AMPERE,
    (8, 9): ON_AMPERE | {Arithmetic.FP8},
    (9, 0): ON_AMPERE | {Arithmetic.FP8},
    (10, 0): ON_AMPERE | {Arithmetic.FP8},
    (12, 0): ON_AMPERE | {Arithmetic.FP8},
}


def gpu(capability: tuple[int, int]) -> Device:
    return Device("cuda:0", "GPU", capability=capability)


@pytest.mark.parametrize("capability", EXPECTED)
def test_what_a_gpu_can_do_is_up_to_its_compute_capability(capability: tuple[int, int]) -> None:
    assert {each for each in Arithmetic if supports(gpu(capability), each)} == EXPECTED[capability]


@pytest.mark.parametrize("cpu", [PLAIN_CPU, RICH_CPU])
def test_a_cpu_makes_up_for_what_it_has_no_instructions_for(cpu: Device) -> None:
    assert {each for each in Arithmetic if supports(cpu, each)} == ON_CPU


@pytest.mark.parametrize(
    ("device", "arithmetic", "fragments"),
    [
        (gpu((8, 6)), Arithmetic.FP8, ("capability 8.9 or more", "GPU, compute capability 8.6", "works there is int8")),
        (gpu((7, 0)), Arithmetic.BF16, ("capability 8.0 or more", "works there is fp16")),
        (gpu((7, 0)), Arithmetic.FP8, ("capability 8.9", "works there is fp16")),
        (gpu((7, 5)), Arithmetic.INT4_WEIGHT_ONLY, ("capability 8.0", "works there is fp8 weights")),
        (gpu((9, 0)), Arithmetic.INT8_STATIC, ("needs a CPU", "works there is int8")),
        (gpu((5, 0)), Arithmetic.INT8, ("capability 7.5", "works there is fp32")),
        (PLAIN_CPU, Arithmetic.FP8, ("cpu (Old CPU, with avx2)", "works there is int8")),
        (PLAIN_CPU, Arithmetic.TF32, ("capability 8.0 or more", "works there is fp32")),
    ],
)
def test_a_refusal_says_what_is_needed_what_is_there_and_what_comes_closest(
    device: Device, arithmetic: Arithmetic, fragments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "find_device", lambda _: device)
    with pytest.raises(InvalidConfig, match="parameters: dtype: 'x'") as raised:
        require(make_source(tmp_path, device=device.name), arithmetic, "dtype", "x")
    for fragment in fragments:
        assert fragment in str(raised.value)


@pytest.mark.parametrize(("cpu", "warned"), [(PLAIN_CPU, True), (RICH_CPU, False)])
def test_what_is_made_up_for_is_told(
    cpu: Device, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "find_device", lambda _: cpu)
    with caplog.at_level(logging.WARNING):
        require(make_source(tmp_path), Arithmetic.BF16, "dtype", "bf16")
    assert ("has no instructions for bf16 (amx_bf16 or avx512_bf16)" in caplog.text) == warned


def test_the_cpu_is_this_machines() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    found = find_device("cpu")
    assert found.model in flags
    assert found.instructions
    assert all(flag in flags for flag in found.instructions)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "find_gpus", lambda: (gpu((9, 0)),))
    assert find_device("cuda:0").capability == (9, 0)
    with pytest.raises(BackendMissing, match="cuda:1: the CUDA driver shows 1 GPUs"):
        find_device("cuda:1")
