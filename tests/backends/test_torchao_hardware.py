"""Every precision of torchao's on every kind of device: accepted, or refused with what it needs and the nearest."""

import logging
from pathlib import Path

import pytest
from tests.backends.cases import make_source
from tests.backends.torchao_networks import load_quantized, save_network

from preheat.errors import InvalidConfig
from preheat_backends import hardware
from preheat_backends.torchao.options import parse, require_hardware

GPUS = {
    "sm_75": hardware.Device("cuda:0", "Tesla T4", (7, 5)),
    "sm_80": hardware.Device("cuda:0", "NVIDIA A100", (8, 0)),
    "sm_86": hardware.Device("cuda:0", "NVIDIA A10", (8, 6)),
    "sm_89": hardware.Device("cuda:0", "NVIDIA L4", (8, 9)),
    "sm_90": hardware.Device("cuda:0", "NVIDIA H100", (9, 0)),
}
COMPILED = {"compile": "true", "freezing": "true"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_network(tmp_path)


def ask(device: hardware.Device, folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: str) -> None:
    """Ask for ``parameters`` as if ``device`` were there."""
    monkeypatch.setattr(hardware, "find_device", lambda _: device)
    source = make_source(folder, device=device.name, parameters=parameters)
    require_hardware(source, parse(source))


@pytest.mark.parametrize(
    ("quantization", "gpus"),
    [
        ("int8_weight_only", {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90"}),
        ("int8_dynamic", {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90"}),
        ("fp8_weight_only", {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90"}),
        ("int4_weight_only", {"sm_80", "sm_86", "sm_89", "sm_90"}),
        ("fp8_dynamic", {"sm_89", "sm_90"}),
        ("pt2e_static", set()),
        ("pt2e_dynamic", set()),
    ],
)
@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_is_asked_for_what_it_can_do_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, gpus: set[str], gpu: str
) -> None:
    parameters = {"quantization": quantization, **(COMPILED if quantization.startswith("pt2e") else {})}
    if gpu in gpus:
        ask(GPUS[gpu], folder, monkeypatch, **parameters)
        return
    with pytest.raises(InvalidConfig) as refusal:
        ask(GPUS[gpu], folder, monkeypatch, **parameters)
    text = str(refusal.value)
    assert f"config.pbtxt: parameters: quantization: '{quantization}': " in text
    assert f"the model is on {GPUS[gpu]}" in text
    assert "the nearest that works there is" in text


@pytest.mark.parametrize(
    ("gpu", "parameters", "message"),
    [
        ("sm_86", {"quantization": "fp8_dynamic"}, r"fp8 needs a GPU of compute capability 8\.9 .* there is int8"),
        ("sm_75", {"quantization": "int4_weight_only"}, r"needs a GPU of compute capability 8\.0 or more or a CPU"),
        ("sm_75", {"quantization": "int8_dynamic", "dtype": "bf16"}, r"dtype: 'bf16': bf16 needs .* there is fp16"),
        ("sm_90", {"quantization": "pt2e_static", **COMPILED}, r"needs a CPU, and the model is on cuda:0 .* is int8"),
        ("sm_90", {"quantization": "fp8_dynamic", "dtype": "fp32"}, r"dtype: 'fp32': must be bf16"),
        (
            "sm_80",
            {"quantization": "int4_weight_only", "group_size": "16"},
            r"group_size: 16: must be one of 32, 64, 128, 256 on cuda:0",
        ),
    ],
)
def test_what_a_gpu_lacks_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        ask(GPUS[gpu], folder, monkeypatch, **parameters)


def test_the_cpu_has_no_arithmetic_in_fp8(folder: Path) -> None:
    message = r"'fp8_dynamic': fp8 needs a GPU of compute capability 8\.9 or more, and .* cpu .* there is int8"
    with pytest.raises(InvalidConfig, match=message):
        load_quantized(folder, "fp8_dynamic")


def test_a_cpu_without_the_instructions_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = hardware.Device("cpu", "an old one", instructions=frozenset({"avx2"}))
    with caplog.at_level(logging.WARNING, "preheat_backends.hardware"):
        ask(plain, folder, monkeypatch, quantization="pt2e_dynamic", **COMPILED)
    assert "pt2e_dynamic: cpu (an old one, with avx2) has no instructions for int8 by the x86 kernels" in caplog.text


def test_another_cpu_than_x86_has_no_kernels_for_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(InvalidConfig, match=r"kernels are for x86 CPUs, and this one is aarch64; the nearest is int8"):
        load_quantized(folder, "pt2e_static", parameters=COMPILED)
