"""Whether a package may run here: what it was compiled for against what there is, before any of it is loaded.

torch compares the same facts and only warns. Code for instructions that the CPU has not ends the process, and with it
all other models.
"""

import platform
import re
import sys
from collections.abc import Iterable, Mapping

import torch

from preheat.backend import ModelSource
from preheat.errors import InvalidArtifact
from preheat_backends.aot_inductor.description import Description
from preheat_backends.aot_inductor.package import Package
from preheat_backends.hardware import Device, find_device

_TOOL = "python -m preheat_backends.aot_inductor.build"
# What torch calls a set of vector instructions, and the flags of those that it has the compiler use for it.
_SETS: Mapping[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2", "fma", "f16c"}),
    "AVX512": frozenset({"avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"}),
    "AVX512_VNNI": frozenset({"avx512_vnni"}),
    "AMX_TILE": frozenset({"amx_tile", "amx_bf16", "amx_int8"}),
    "ASIMD": frozenset({"asimd"}),
    # No vector instructions at all, which torch calls so.
    "INVALID_VEC_ISA": frozenset(),
}
# What compilers put into code by themselves, of all that a CPU's flags name.
_USED_BY_COMPILERS = re.compile(r"pni|ssse3|sse4_[12]|popcnt|abm|movbe|f16c|fma4?|bmi[12]|xop|gfni|avx\w*|amx_\w+")


def compilers_choice(instructions: Iterable[str]) -> frozenset[str]:
    """Those of a CPU's ``instructions`` that a compiler told to compile for that very CPU may use."""
    return frozenset(flag for flag in instructions if _USED_BY_COMPILERS.fullmatch(flag))


def needed_instructions(metadata: Mapping[str, str]) -> frozenset[str]:
    """The flags of the vector instructions that torch says it compiled for; of a set not known here, its name."""
    names = metadata.get("AOTI_CPU_ISA", "").split()
    return frozenset().union(*(_SETS.get(name, frozenset({name.lower()})) for name in names))


def check_compatible(source: ModelSource, package: Package, description: Description | None) -> None:
    """Raise InvalidArtifact, saying what it is for, what is here and what to do, for a package that cannot run here."""
    check = _Check(source, package, find_device(source.device))
    check.device()
    check.system()
    if description is not None:
        check.torch(description.torch)
    check.instructions(needed_instructions(package.metadata) | (description.instructions if description else set()))
    check.capability()


class _Check:
    """One package against one device."""

    def __init__(self, source: ModelSource, package: Package, device: Device) -> None:
        self._source = source
        self._package = package
        self._device = device
        self._kind = source.device.partition(":")[0]

    def device(self) -> None:
        """Of which kind it is."""
        built = self._told("AOTI_DEVICE_KEY")
        if built != self._kind:
            other = "KIND_GPU" if built == "cuda" else "KIND_CPU"
            raise self._refuse(
                f"{built}, and the model is on {self._source.device}",
                f"place it by instance_group {{ kind: {other} }}, or build it with {_TOOL} ... --device {self._kind}",
            )

    def system(self) -> None:
        """Operating system and processor architecture."""
        for key, here, what in (
            ("AOTI_PLATFORM", sys.platform, "the operating system"),
            ("AOTI_MACHINE", platform.machine(), "processors of type"),
        ):
            built = self._told(key)
            if built != here:
                raise self._refuse(f"{what} {built!r}, and this is {here!r}", "build it on such a machine as serves it")

    def torch(self, built: str) -> None:
        """Its version: only code of the same minor version is known to fit."""
        if _minor(built) != _minor(torch.__version__):
            raise self._refuse(
                f"torch {built}, and this is torch {torch.__version__}",
                f"build it again with {_TOOL} under this torch, or install torch {_minor(built)}",
            )

    def instructions(self, needed: frozenset[str] | set[str]) -> None:
        """Of the CPU, also where the kernels are a GPU's: what calls them is compiled for the CPU."""
        here = find_device("cpu")
        missing = sorted(needed - here.instructions)
        if missing:
            raise self._refuse(
                f"a CPU with {', '.join(missing)} ({self._package.metadata.get('AOTI_CPU_ISA') or 'unknown'}), which "
                f"this one ({here.model}) has not",
                f"build it on this machine, or for older CPUs by {_TOOL} ... --isa avx2",
            )

    def capability(self) -> None:
        """Of a GPU."""
        if self._device.capability is None:
            return
        major, minor = self._device.capability
        built = self._told("AOTI_COMPUTE_CAPABILITY")
        if built != str(10 * major + minor):
            raise self._refuse(
                f"GPUs of compute capability {built}, and this one ({self._device.model}) has {10 * major + minor}",
                f"build it with {_TOOL} ... --device cuda on a GPU like this one",
            )

    def _told(self, key: str) -> str:
        """What the package's metadata say; raises InvalidArtifact if they do not."""
        if key not in self._package.metadata:
            raise InvalidArtifact(
                f"{self._package.path} does not say what it was compiled for: its metadata have no {key}; build it "
                f"again, by {_TOOL} or with torch 2.7 or later"
            )
        return self._package.metadata[key]

    def _refuse(self, what: str, remedy: str) -> InvalidArtifact:
        return InvalidArtifact(f"{self._package.path} was compiled for {what}; {remedy}")


def _minor(version: str) -> str:
    return ".".join(version.partition("+")[0].split(".")[:2])
