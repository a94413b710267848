"""How to compile: what may be asked for, and what is refused."""

import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor

from preheat.backend import Dimension, ModelSource, Signature
from preheat.errors import BackendMissing, InvalidConfig


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile.

    ``freezing``: the weights are constants, which are folded and laid out for the kernels; they are held twice.
    ``fullgraph``: a network that does not compile as one graph is an error. ``dynamic``: batch size and varying
    dimensions are symbols, and one graph serves all their sizes from 2.
    """

    freezing: bool = False
    fullgraph: bool = False
    dynamic: bool = False

    @property
    def inductor(self) -> dict[str, Any]:
        """As inductor's options."""
        return {"freezing": self.freezing}


def check_compilable(
    source: ModelSource, signature: Signature, options: CompileOptions, *, device: torch.device
) -> None:
    """Raise InvalidConfig for shapes that static graphs cannot serve, BackendMissing where there is no compiler."""
    if not options.dynamic:
        for spec in signature.inputs:
            for axis in spec.shape:
                if axis.size is None and axis.name not in source.buckets.sizes:
                    raise _refuse_axis(source, spec.name, axis)
    if device.type == "cpu":
        _require_cpp_compiler(source)


def _refuse_axis(source: ModelSource, tensor: str, axis: Dimension) -> InvalidConfig:
    bucket = (
        f"list the sizes to serve in parameter preheat.buckets.{axis.name}"
        if axis.name
        else f"name it by preheat.shape.{tensor} and list the sizes to serve in preheat.buckets.NAME"
    )
    return InvalidConfig(
        f"{source.config_path}: input '{tensor}': its dimension {axis} varies, and each size would be compiled when a "
        f"request first has it; {bucket}, set parameter dynamic: true, or fix its dims"
    )


def _require_cpp_compiler(source: ModelSource) -> None:
    """Inductor's kernels for the CPU are C++, which it has compiled, and which include Python's headers."""
    compilers: Any = torch._inductor.config.cpp.cxx
    names = [name for name in (compilers if isinstance(compilers, tuple | list) else (compilers,)) if name]
    if not any(shutil.which(name) for name in names):
        raise BackendMissing(
            f"{source.name}: torch.compile needs a C++ compiler for the CPU: install {' or '.join(names)}, or name one "
            "in the environment variable CXX"
        )
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").is_file():
        raise BackendMissing(
            f"{source.name}: torch.compile needs Python's headers for the CPU, and {headers} has no Python.h: install "
            "the package that has them (python3-dev or the like)"
        )
