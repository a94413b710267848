"""What compiled code depends on beside the artifact and its configuration."""

import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.version
from torch._inductor import cpp_builder

from preheat.backend import ModelSource
from preheat_backends.torch_compile import kernels


def describe_environment(source: ModelSource) -> str:
    """All of it for the device of ``source``, for people to read and to compare as text."""
    facts = {
        "torch": f"{torch.__version__} ({torch.version.git_version})",
        "torchao": _version("torchao"),
        "triton": _version("triton"),
        "python": f"{sys.implementation.cache_tag} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "threads": str(source.threads),
        "kernels": kernels.VERSION,
        **_host(),
        **_gpu(source),
    }
    return "; ".join(f"{name} {value}" for name, value in facts.items() if value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _host() -> dict[str, str]:
    return {"compiler": _compiler(), "cpu": f"{torch.backends.cpu.get_cpu_capability()} {_instructions()}"}


def _compiler() -> str:
    try:
        told: str = cpp_builder.get_compiler_version_info(cpp_builder.get_cpp_compiler())
    except Exception:  # there is none, which load() says better
        return "none"
    return f"{told.splitlines()[0] if told else ''} {_digest(told)}"


def _instructions() -> str:
    """All that the CPU can do: inductor compiles for the very machine, so with less its code would die of SIGILL."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name")}
    return _digest("\n".join(sorted(told)))


def _gpu(source: ModelSource) -> dict[str, str]:
    if not source.device.startswith("cuda") or not torch.cuda.is_available():
        return {}
    properties: Any = torch.cuda.get_device_properties(source.device)
    return {
        "cuda": str(torch.version.cuda),
        "gpu": f"{properties.name} {properties.major}.{properties.minor} with {properties.multi_processor_count} units",
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
