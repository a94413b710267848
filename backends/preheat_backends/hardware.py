"""The hardware gate: what a device can compute with, as one table, and what it is refused with where it cannot.

Facts of a GPU come from its driver, by ctypes, so that ONNX Runtime's models need no torch; those of the CPU from
``/proc/cpuinfo``. Sources of the table: NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities", and what torch and
torchao check themselves (``docs/support-matrix.md`` says which rows were run).
"""

import ctypes
import enum
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from preheat.backend import ModelSource
from preheat.errors import BackendMissing

log = logging.getLogger(__name__)

_CPU_FACTS = Path("/proc/cpuinfo")
_DRIVER = "libcuda.so.1"
# CUdevice_attribute of cuda.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_MOST_NAME_BYTES = 256


class Arithmetic(enum.Enum):
    """What a model may be asked to compute in, or to keep its weights in."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_STATIC = "int8 by the x86 kernels"
    FP8 = "fp8"
    FP8_WEIGHT_ONLY = "fp8 weights"
    INT4_WEIGHT_ONLY = "int4 weights"


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine.

    ``name`` is "cpu" or "cuda:N", ``model`` what its maker calls it. ``capability`` is a GPU's compute capability.
    ``instructions`` are the CPU's, by the names that Linux has for its flags.
    """

    name: str
    model: str
    capability: tuple[int, int] | None = None
    instructions: frozenset[str] = frozenset()

    def __str__(self) -> str:
        if self.capability is not None:
            return f"{self.name} ({self.model}, compute capability {_dotted(self.capability)})"
        known = [flag for flag in _TOLD if flag in self.instructions]
        return f"{self.name} ({self.model}, with {', '.join(known) or 'none of ' + ', '.join(_TOLD)})"


@dataclass(frozen=True, slots=True)
class _Needs:
    """Where an arithmetic works.

    ``capability``: from which compute capability on; None: on no GPU. ``cpu``: on CPUs. ``instructions``: with any of
    them the CPU has it in hardware; without, it is made up for, slowly; empty: nothing is to be made up for.
    ``instead``: what comes closest, the closest first.
    """

    capability: tuple[int, int] | None
    cpu: bool = True
    instructions: tuple[str, ...] = ()
    instead: tuple[Arithmetic, ...] = ()


_TABLE: Mapping[Arithmetic, _Needs] = {
    Arithmetic.FP32: _Needs((0, 0)),
    Arithmetic.TF32: _Needs((8, 0), cpu=False, instead=(Arithmetic.FP32,)),
    Arithmetic.FP16: _Needs(
        (5, 3), instructions=("avx512_fp16", "amx_fp16"), instead=(Arithmetic.BF16, Arithmetic.FP32)
    ),
    Arithmetic.BF16: _Needs(
        (8, 0), instructions=("amx_bf16", "avx512_bf16"), instead=(Arithmetic.FP16, Arithmetic.FP32)
    ),
    Arithmetic.INT8: _Needs((7, 5), instead=(Arithmetic.FP16,)),
    Arithmetic.INT8_STATIC: _Needs(
        None, instructions=("amx_int8", "avx512_vnni", "avx_vnni"), instead=(Arithmetic.INT8, Arithmetic.FP16)
    ),
    Arithmetic.FP8: _Needs((8, 9), cpu=False, instead=(Arithmetic.INT8, Arithmetic.BF16, Arithmetic.FP16)),
    Arithmetic.FP8_WEIGHT_ONLY: _Needs((7, 5), instead=(Arithmetic.FP16,)),
    Arithmetic.INT4_WEIGHT_ONLY: _Needs((8, 0), instead=(Arithmetic.FP8_WEIGHT_ONLY, Arithmetic.FP16)),
}
_TOLD = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def require(source: ModelSource, arithmetic: Arithmetic, key: str, value: object) -> None:
    """See that the device of ``source`` can do what parameter ``key`` asks for, by its ``value``.

    Raises InvalidConfig that names what that needs, what is there, and what comes closest; BackendMissing for a GPU
    that is not there. What a CPU has no instructions for and makes up for is said in the log.
    """
    device = find_device(source.device)
    if not supports(device, arithmetic):
        raise source.refuse(key, value, _objection(device, arithmetic))
    needs = _TABLE[arithmetic]
    if device.capability is None and needs.instructions and device.instructions.isdisjoint(needs.instructions):
        log.warning(
            "%s: %s: %s: %s has no instructions for %s (%s), which works all the same, but slowly",
            source.name,
            key,
            value,
            device,
            arithmetic.value,
            " or ".join(needs.instructions),
        )


def supports(device: Device, arithmetic: Arithmetic) -> bool:
    """Whether ``arithmetic`` works on ``device``, fast or not."""
    needs = _TABLE[arithmetic]
    if device.capability is None:
        return needs.cpu
    return needs.capability is not None and device.capability >= needs.capability


def find_device(device: str) -> Device:
    """The facts of "cpu" or "cuda:N". Raises BackendMissing where there is no such GPU."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return _read_cpu()
    gpus = find_gpus()
    number = int(index or 0)
    if number >= len(gpus):
        raise BackendMissing(f"{device}: the CUDA driver shows {len(gpus)} GPUs here")
    return gpus[number]


def _objection(device: Device, arithmetic: Arithmetic) -> str:
    needs = _TABLE[arithmetic]
    places = [] if needs.capability is None else [f"a GPU of compute capability {_dotted(needs.capability)} or more"]
    places += ["a CPU"] if needs.cpu else []
    instead = next((each for each in needs.instead if supports(device, each)), Arithmetic.FP32)
    return (
        f"{arithmetic.value} needs {' or '.join(places)}, and the model is on {device}; "
        f"the nearest that works there is {instead.value}"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


@cache
def _read_cpu() -> Device:
    """Of the first processor; all are alike, or Linux would not have made them one machine."""
    facts: dict[str, str] = {}
    try:
        for line in _CPU_FACTS.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        log.warning("%s cannot be read: nothing is known of this CPU's instructions", _CPU_FACTS)
    flags = facts.get("flags") or facts.get("Features") or ""
    return Device("cpu", facts.get("model name", "CPU"), instructions=frozenset(flags.split()))


@cache
def find_gpus() -> tuple[Device, ...]:
    """What the CUDA driver shows, in its order; nothing without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return ()
    return tuple(_query_gpus(driver))


def _query_gpus(driver: ctypes.CDLL) -> Iterator[Device]:
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return
    for index in range(count.value):
        ordinal, name = ctypes.c_int(), ctypes.create_string_buffer(_MOST_NAME_BYTES)
        driver.cuDeviceGet(ctypes.byref(ordinal), index)
        driver.cuDeviceGetName(name, _MOST_NAME_BYTES, ordinal)
        capability = (_attribute(driver, _CAPABILITY_MAJOR, ordinal), _attribute(driver, _CAPABILITY_MINOR, ordinal))
        yield Device(f"cuda:{index}", name.value.decode(errors="replace"), capability=capability)


def _attribute(driver: ctypes.CDLL, attribute: int, ordinal: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, ordinal)
    return value.value
