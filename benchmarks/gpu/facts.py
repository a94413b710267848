"""What a GPU's figures depend on beside the machine: the GPU, its driver, CUDA, and what was compiled with."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

from preheat_backends.hardware import Device

_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = ("torch", "torchao", "triton")


def gpu_facts(device: Device) -> dict[str, str]:
    """For a page's list of facts."""
    packages = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    facts = {"device": str(device), "libraries": ", ".join(packages)}
    if device.capability is None:
        return facts
    import torch

    return {**facts, "driver": _driver(), "CUDA": torch.version.cuda or "none: this torch was built without"}


def _driver() -> str:
    """The driver's version: as nvidia-smi says, or else the kernel."""
    program = shutil.which("nvidia-smi")
    if program:
        query = [program, "--query-gpu=driver_version,power.limit,memory.total", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - its path is the system's
        if done.returncode == 0:
            return done.stdout.splitlines()[0].strip()
    try:
        found = re.search(r"Kernel Module\D*([\d.]+)", _DRIVER.read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
