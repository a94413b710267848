"""ONNX Runtime's TensorRT provider: its settings, the shapes of its engine, and the library that it needs.

An engine is built at load, for all shapes from the smallest to the largest that the signature allows: without such
bounds the provider would build another one whenever a request leaves the shapes that it has seen.
"""

import ctypes
from collections.abc import Iterator

from preheat.backend import Dimension, ModelSource, Outside, Signature, TensorSpec
from preheat.errors import BackendMissing
from preheat_backends.hardware import Arithmetic, require
from preheat_backends.onnxruntime.options import Parameters

# ONNX Runtime's provider is linked against this one, whatever newer TensorRT is installed.
_LIBRARY = "libnvinfer.so.10"
_MIB = 2**20


def make_settings(
    source: ModelSource, parameters: Parameters, signature: Signature, *, quantized: bool
) -> dict[str, str]:
    """The provider's settings. Raises BackendMissing without the library, InvalidConfig for what cannot be."""
    check_library(source)
    return {
        "device_id": source.device.partition(":")[2] or "0",
        **_precision(source, parameters, quantized=quantized),
        **_effort(parameters),
        **_caches(source),
        **make_profile(source, signature),
    }


def check_library(source: ModelSource) -> None:
    """Raise BackendMissing unless TensorRT 10 can be loaded."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as exc:
        raise BackendMissing(
            f"{source.config_path}: parameters: execution_provider: 'tensorrt': {exc}; ONNX Runtime's TensorRT "
            "provider links TensorRT 10, and takes no other: install that and put its libraries where the loader "
            "looks (LD_LIBRARY_PATH), or choose execution_provider: cuda"
        ) from exc


def library_version() -> str:
    """The version of the library as it gives it, one number; empty where there is none."""
    try:
        return str(ctypes.CDLL(_LIBRARY).getInferLibVersion())
    except (OSError, AttributeError):
        return ""


def _precision(source: ModelSource, parameters: Parameters, *, quantized: bool) -> dict[str, str]:
    if parameters.tensorrt_int8 and not quantized:
        raise source.refuse(
            "tensorrt_int8", "true", "the graph has no QuantizeLinear nodes, and calibration tables are not taken"
        )
    asked = {
        "tensorrt_fp16": (parameters.tensorrt_fp16, Arithmetic.FP16, "trt_fp16_enable"),
        "tensorrt_bf16": (parameters.tensorrt_bf16, Arithmetic.BF16, "trt_bf16_enable"),
        "tensorrt_int8": (parameters.tensorrt_int8, Arithmetic.INT8, "trt_int8_enable"),
    }
    settings = {}
    for key, (wanted, arithmetic, option) in asked.items():
        if wanted:
            require(source, arithmetic, key, "true")
            settings[option] = "1"
    if parameters.tensorrt_layer_norm_fp32:
        settings["trt_layer_norm_fp32_fallback"] = "1"
    return settings


def _effort(parameters: Parameters) -> dict[str, str]:
    settings = {}
    if parameters.tensorrt_workspace_mib is not None:
        settings["trt_max_workspace_size"] = str(parameters.tensorrt_workspace_mib * _MIB)
    if parameters.tensorrt_optimization_level is not None:
        settings["trt_builder_optimization_level"] = str(parameters.tensorrt_optimization_level)
    return settings


def _caches(source: ModelSource) -> dict[str, str]:
    """Engines, and how long each kernel took, are kept where the server keeps compiled code."""
    if source.cache_path is None:
        return {}
    path = str(source.cache_path)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": path,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": path,
    }


def make_profile(source: ModelSource, signature: Signature) -> dict[str, str]:
    """The smallest, the best and the largest shapes of inputs; nothing if all are fixed. The best is the largest.

    Raises InvalidConfig for a dimension without an upper bound.
    """
    bounds = {spec.name: tuple(_bounds(source, signature, spec)) for spec in signature.inputs}
    if all(low == high for axes in bounds.values() for low, high in axes):
        return {}
    low = ",".join(f"{name}:{'x'.join(str(low) for low, _ in axes)}" for name, axes in bounds.items())
    high = ",".join(f"{name}:{'x'.join(str(high) for _, high in axes)}" for name, axes in bounds.items())
    return {"trt_profile_min_shapes": low, "trt_profile_opt_shapes": high, "trt_profile_max_shapes": high}


def _bounds(source: ModelSource, signature: Signature, spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """The smallest and the largest size of each axis of ``spec``, the batch first."""
    if signature.batches:
        yield 1, signature.max_batch_size
    for axis in spec.shape:
        sizes = source.buckets.sizes.get(axis.name) if axis.name else None
        if sizes and source.buckets.outside is Outside.REFUSE:
            yield sizes[0], sizes[-1]
        elif axis.maximum is None:
            raise source.refuse("execution_provider", "tensorrt", _needs_bound(spec, axis))
        else:
            # An engine takes no axis without elements.
            yield max(1, axis.minimum), axis.maximum


def _needs_bound(spec: TensorSpec, axis: Dimension) -> str:
    name = axis.name or "NAME"
    first = "" if axis.name else f"name it with preheat.shape.{spec.name}, and "
    return (
        f"an engine is built for shapes with bounds, and axis {str(axis)!r} of input {spec.name!r} has no upper one: "
        f"{first}set preheat.dimension.{name}, such as 1..512"
    )
