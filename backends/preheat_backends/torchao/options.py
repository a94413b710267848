"""The parameters of the backend, and which of them go with which."""

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from preheat.backend import ModelSource
from preheat.errors import InvalidConfig
from preheat_backends.hardware import Arithmetic, require
from preheat_backends.torch_compile.options import CompileOptions, set_options
from preheat_backends.torch_programs.precision import Precision
from preheat_backends.torchao.calibration import DEFAULT_CALIBRATION
from preheat_backends.torchao.quantization import DEFAULT_GROUP_SIZE, Int4Algorithm, Quantization


@dataclass(frozen=True, slots=True)
class Parameters(CompileOptions):
    """``dtype`` is that of all that is not quantized; ``only`` and ``skip`` are patterns of layers' names, with commas.

    ``group_size`` and ``int4_algorithm`` are for 4-bit weights, ``calibration`` is the name of a file of samples for
    pt2e_static; None stands for the default. The options of :class:`CompileOptions` are for ``compile``.
    """

    quantization: Quantization | None = None
    dtype: Precision | None = None
    only: str = "*"
    skip: str = ""
    group_size: int | None = None
    int4_algorithm: Int4Algorithm | None = None
    calibration: str | None = None
    compile: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """Parameters that go together. ``parameters`` are as they were written."""

    parameters: Parameters
    quantization: Quantization

    @property
    def dtype(self) -> Precision | None:
        """What the network computes in beside its quantized layers; None leaves it as it is."""
        return self.parameters.dtype

    @property
    def only(self) -> Sequence[str]:
        """The patterns of which a layer's name fits one."""
        return _patterns(self.parameters.only)

    @property
    def skip(self) -> Sequence[str]:
        """The patterns of which it fits none."""
        return _patterns(self.parameters.skip)

    @property
    def group_size(self) -> int:
        """How many 4-bit weights share a scale."""
        return self.parameters.group_size or DEFAULT_GROUP_SIZE

    @property
    def int4_algorithm(self) -> Int4Algorithm:
        """How the scales of 4-bit weights are found."""
        return self.parameters.int4_algorithm or Int4Algorithm.TINYGEMM

    @property
    def calibration(self) -> str:
        """The name of the file of samples."""
        return self.parameters.calibration or DEFAULT_CALIBRATION


_ARITHMETIC = {
    Quantization.INT8_WEIGHT_ONLY: Arithmetic.INT8,
    Quantization.INT8_DYNAMIC: Arithmetic.INT8,
    Quantization.INT4_WEIGHT_ONLY: Arithmetic.INT4_WEIGHT_ONLY,
    Quantization.FP8_WEIGHT_ONLY: Arithmetic.FP8_WEIGHT_ONLY,
    Quantization.FP8_DYNAMIC: Arithmetic.FP8,
    Quantization.PT2E_STATIC: Arithmetic.INT8_STATIC,
    Quantization.PT2E_DYNAMIC: Arithmetic.INT8_STATIC,
}
_DTYPES = {Precision.BF16: Arithmetic.BF16}
_ONLY_WITH = {
    "only": frozenset(Quantization) - {Quantization.CHECKPOINT},
    "skip": frozenset(Quantization) - {Quantization.CHECKPOINT},
    "group_size": frozenset({Quantization.INT4_WEIGHT_ONLY}),
    "int4_algorithm": frozenset({Quantization.INT4_WEIGHT_ONLY}),
    "calibration": frozenset({Quantization.PT2E_STATIC}),
}
_GROUP_SIZES = {"cpu": (32, 64, 128), "cuda": (32, 64, 128, 256)}
_X86 = ("x86_64", "AMD64")


def parse(source: ModelSource) -> Options:
    """What ``source`` asks for.

    Raises InvalidConfig by name for what is unknown, or does not go together.
    """
    parameters = source.parse_parameters(Parameters)
    quantization = parameters.quantization
    if quantization is None:
        allowed = ", ".join(member.value for member in Quantization)
        raise InvalidConfig(f"{source.config_path}: parameters: quantization: not set; must be one of {allowed}")
    _refuse_what_does_not_go(source, parameters, quantization)
    if not parameters.compile:
        for name, value in set_options(parameters):
            raise source.refuse(name, value, "goes with parameter compile: true only")
    _refuse_dtypes(source, parameters, quantization)
    if quantization.by_graph:
        _refuse_graphs(source, parameters, quantization)
    _refuse_group_sizes(source, parameters)
    return Options(parameters, quantization)


def require_hardware(source: ModelSource, options: Options) -> None:
    """See that the device of ``source`` can do what is asked for. Raises as :func:`preheat_backends.hardware.require`.

    What a checkpoint needs is known when it is read.
    """
    quantization, dtype = options.quantization, options.dtype
    if quantization in _ARITHMETIC:
        require(source, _ARITHMETIC[quantization], "quantization", quantization.value)
    if dtype in _DTYPES:
        require(source, _DTYPES[dtype], "dtype", dtype.value)


def _refuse_what_does_not_go(source: ModelSource, parameters: Parameters, quantization: Quantization) -> None:
    for field in dataclasses.fields(Parameters):
        value = getattr(parameters, field.name)
        allowed = _ONLY_WITH.get(field.name)
        if allowed is not None and value != field.default and quantization not in allowed:
            names = ", ".join(member.value for member in Quantization if member in allowed)
            raise source.refuse(
                field.name, source.parameters[field.name], f"goes with parameter quantization: {names} only"
            )


def _refuse_dtypes(source: ModelSource, parameters: Parameters, quantization: Quantization) -> None:
    if parameters.dtype is None:
        return
    dtype = parameters.dtype.value
    if parameters.dtype is Precision.FP16:
        raise source.refuse("dtype", dtype, "must be one of fp32, bf16 beside quantized layers")
    if quantization.by_graph and parameters.dtype is not Precision.FP32:
        raise source.refuse("dtype", dtype, f"must be fp32, which the kernels of {quantization.value} take and give")
    if quantization is Quantization.FP8_DYNAMIC and parameters.dtype is not Precision.BF16:
        raise source.refuse("dtype", dtype, "must be bf16, which the kernels of fp8_dynamic take and give")


def _refuse_graphs(source: ModelSource, parameters: Parameters, quantization: Quantization) -> None:
    if source.device == "cpu" and platform.machine() not in _X86:
        raise source.refuse(
            "quantization",
            quantization.value,
            f"its kernels are for x86 CPUs, and this one is {platform.machine()}; the nearest is int8_dynamic",
        )
    if not (parameters.compile and parameters.freezing):
        raise source.refuse(
            "quantization",
            quantization.value,
            "needs compile: true and freezing: true: otherwise quantizing and dequantizing are operators of their own "
            "around layers that compute in fp32, which is slower than fp32 alone",
        )


def _refuse_group_sizes(source: ModelSource, parameters: Parameters) -> None:
    allowed = _GROUP_SIZES[source.device.partition(":")[0]]
    if parameters.group_size is not None and parameters.group_size not in allowed:
        raise source.refuse(
            "group_size", parameters.group_size, f"must be one of {', '.join(map(str, allowed))} on {source.device}"
        )


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
