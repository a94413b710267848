"""How to compile: what may be asked for, what that makes of inductor, and what is refused."""

import dataclasses
import enum
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._inductor
import torch._inductor.config

from preheat.backend import Dimension, ModelSource, Signature
from preheat.errors import BackendMissing, InvalidConfig
from preheat_backends.torch_compile.cuda_graphs import refuse_one_thread_only


class Mode(enum.Enum):
    """torch.compile's modes: sets of inductor's options."""

    DEFAULT = "default"
    REDUCE_OVERHEAD = "reduce-overhead"
    MAX_AUTOTUNE = "max-autotune"
    MAX_AUTOTUNE_NO_CUDAGRAPHS = "max-autotune-no-cudagraphs"


class Contraction(enum.Enum):
    """Whether the C++ compiler may join a multiplication and an addition, which rounds once instead of twice."""

    OFF = "off"
    ON = "on"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile. None leaves an option as the mode has it.

    ``freezing``: the weights are constants, which are folded and laid out for the kernels; they are held twice.
    ``fullgraph``: a network that does not compile as one graph is an error. ``dynamic``: batch size and varying
    dimensions are symbols, and one graph serves all their sizes from 2. The others are inductor's own, by its names, a
    dot in which is an underscore here.
    """

    mode: Mode = Mode.DEFAULT
    freezing: bool = False
    fullgraph: bool = False
    dynamic: bool = False
    max_autotune: bool | None = None
    epilogue_fusion: bool | None = None
    coordinate_descent_tuning: bool | None = None
    coordinate_descent_check_all_directions: bool | None = None
    force_fuse_int_mm_with_mul: bool | None = None
    shape_padding: bool | None = None
    triton_cudagraphs: bool | None = None
    cpp_simdlen: int | None = None
    cpp_enable_concat_linear: bool | None = None
    cpp_enable_floating_point_contract_flag: Contraction | None = None
    cpp_cache_precompile_headers: bool | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What networks of a model are compiled with. ``inductor`` are options that inductor has, for the device it is on.

    ``device`` is its type. ``cache_path`` is where inductor keeps what it compiled; None leaves that to torch.
    """

    inductor: Mapping[str, Any] = field(default_factory=dict)
    freezing: bool = False
    fullgraph: bool = False
    dynamic: bool = False
    device: str = "cpu"
    cache_path: Path | None = None

    @property
    def records_graphs(self) -> bool:
        """Whether what is compiled runs as CUDA graphs."""
        return bool(self.inductor.get(_CUDA_GRAPHS))

    @property
    def keeps_graphs(self) -> bool:
        """Whether whole graphs can be kept: not yet where they hold weights or symbols, or are replayed on CUDA."""
        return self.device == "cpu" and not self.freezing and not self.dynamic


@dataclass(frozen=True, slots=True)
class _Switch:
    """An option of inductor's, ``key``. It acts on ``device`` only, and there only if another one, ``needs``, is on."""

    key: str
    device: str | None = None
    needs: str | None = None


_CUDA_GRAPHS = "triton.cudagraphs"
_SWITCHES = {
    "freezing": _Switch("freezing"),
    "max_autotune": _Switch("max_autotune"),
    "epilogue_fusion": _Switch("epilogue_fusion", needs="max_autotune"),
    "coordinate_descent_tuning": _Switch("coordinate_descent_tuning", device="cuda"),
    "coordinate_descent_check_all_directions": _Switch(
        "coordinate_descent_check_all_directions", device="cuda", needs="coordinate_descent_tuning"
    ),
    "force_fuse_int_mm_with_mul": _Switch("force_fuse_int_mm_with_mul", device="cuda"),
    "shape_padding": _Switch("shape_padding", device="cuda"),
    "triton_cudagraphs": _Switch(_CUDA_GRAPHS, device="cuda"),
    "cpp_simdlen": _Switch("cpp.simdlen", device="cpu"),
    "cpp_enable_concat_linear": _Switch("cpp.enable_concat_linear", device="cpu", needs="freezing"),
    "cpp_enable_floating_point_contract_flag": _Switch("cpp.enable_floating_point_contract_flag", device="cpu"),
    "cpp_cache_precompile_headers": _Switch("cpp_cache_precompile_headers", device="cpu"),
}
# Bits of the vectors that there are instructions for, by what torch calls them.
_VECTORS = {"AVX2": (256,), "AVX512": (256, 512)}


def make_recipe(source: ModelSource, signature: Signature, options: CompileOptions, *, device: torch.device) -> Recipe:
    """What ``options`` mean on ``device``.

    Raises InvalidConfig, by name, for what would have no effect there and for shapes that static graphs cannot serve;
    BackendMissing where there is no compiler.
    """
    if not options.dynamic:
        _refuse_open_shapes(source, signature)
    inductor = {**_mode_options(source, options, device), **_switched(source, options, device)}
    _refuse_without_effect(source, options, inductor, device)
    if device.type == "cpu":
        require_cpp_compiler(source.name, "torch.compile")
        # Its compilers are processes of their own anyhow; a pool of Python processes around them would only stay.
        inductor["compile_threads"] = 1
    return Recipe(inductor, options.freezing, options.fullgraph, options.dynamic, device.type, source.cache_path)


def set_options(options: CompileOptions) -> Iterator[tuple[str, object]]:
    """Those that are not as they are by themselves, with their values as in a configuration."""
    for option in dataclasses.fields(CompileOptions):
        value = getattr(options, option.name)
        if value != option.default:
            yield option.name, _written(value)


def _written(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    return str(value).lower() if isinstance(value, bool) else value


def _mode_options(source: ModelSource, options: CompileOptions, device: torch.device) -> Mapping[str, Any]:
    """A mode together with options is refused by torch: so what the mode stands for is among the options."""
    if device.type != "cuda" and options.mode in (Mode.REDUCE_OVERHEAD, Mode.MAX_AUTOTUNE):
        raise source.refuse(
            "mode",
            options.mode.value,
            f"it is for CUDA graphs, and the model is on {device}; set mode: max-autotune-no-cudagraphs with freezing: "
            "true, or leave it out",
        )
    stands_for: dict[str, Any] = torch._inductor.list_mode_options(options.mode.value)
    return stands_for


def _switched(source: ModelSource, options: CompileOptions, device: torch.device) -> Mapping[str, Any]:
    known = torch._inductor.config.get_config_copy()
    given = {name: value for name, value in set_options(options) if name in _SWITCHES}
    for name, value in given.items():
        switch = _SWITCHES[name]
        if switch.key not in known:
            raise source.refuse(name, value, f"inductor of torch {torch.__version__} has no option {switch.key}")
        if switch.device not in (None, device.type):
            raise source.refuse(
                name, value, f"has no effect on {device}, only on {switch.device} devices; leave it out"
            )
    return {_SWITCHES[name].key: _for_inductor(getattr(options, name)) for name in given}


def _for_inductor(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else value


def _refuse_without_effect(
    source: ModelSource, options: CompileOptions, inductor: Mapping[str, Any], device: torch.device
) -> None:
    """Refuse options that do nothing without another."""
    for name, value in set_options(options):
        needs = _SWITCHES[name].needs if name in _SWITCHES else None
        if needs and not inductor.get(needs):
            raise source.refuse(name, value, f"has no effect without {needs}: true")
    if device.type == "cpu" and inductor.get("max_autotune") and not options.freezing:
        name = "max_autotune" if options.max_autotune else "mode"
        value = "true" if options.max_autotune else options.mode.value
        raise source.refuse(
            name,
            value,
            "has no effect on the CPU without freezing: true, only constant weights have kernels to choose from",
        )
    if inductor.get(_CUDA_GRAPHS):
        asked = "triton_cudagraphs" if options.triton_cudagraphs else "mode"
        refuse_one_thread_only(source, asked, "true" if options.triton_cudagraphs else options.mode.value)
    if inductor.get(_CUDA_GRAPHS) and options.dynamic:
        raise source.refuse(
            "dynamic",
            "true",
            "CUDA graphs are recorded for each size, when a request first has it; list sizes in "
            "preheat.buckets.NAME instead, or choose a mode without CUDA graphs",
        )
    if options.cpp_simdlen is not None:
        widths = (0, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()))
        if options.cpp_simdlen not in widths:
            raise source.refuse(
                "cpp_simdlen", options.cpp_simdlen, f"must be one of {', '.join(map(str, widths))} here"
            )


def _refuse_open_shapes(source: ModelSource, signature: Signature) -> None:
    for spec in signature.inputs:
        for axis in spec.shape:
            if axis.size is None and axis.name not in source.buckets.sizes:
                raise _refuse_axis(source, spec.name, axis)


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


def require_cpp_compiler(subject: str, what: str) -> None:
    """Inductor's kernels for the CPU are C++, which it has compiled, and which include Python's headers.

    Raises BackendMissing where there is no compiler for ``what``, or there are no headers.
    """
    compilers: Any = torch._inductor.config.cpp.cxx
    names = [name for name in (compilers if isinstance(compilers, tuple | list) else (compilers,)) if name]
    if not any(shutil.which(name) for name in names):
        raise BackendMissing(
            f"{subject}: {what} needs a C++ compiler for the CPU: install {' or '.join(names)}, or name one "
            "in the environment variable CXX"
        )
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").is_file():
        raise BackendMissing(
            f"{subject}: {what} needs Python's headers for the CPU, and {headers} has no Python.h: install "
            "the package that has them (python3-dev or the like)"
        )
