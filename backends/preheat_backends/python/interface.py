"""``triton_python_backend_utils``: the module that a model imports, with everything that Triton's has.

What this server does not do is here too, and raises by name when it is used. Each model gets a module of its own, since
its log and its folder are in it; the classes are the same everywhere.
"""

import enum
import logging
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from preheat.tensors import Array, DataType, from_raw, to_raw
from preheat_backends.python import datatypes, messages
from preheat_backends.python.errors import TritonError, TritonModelException, unsupported
from preheat_backends.python.logger import Logger
from preheat_backends.python.messages import InferenceRequest, InferenceResponse, ReceivedRequest
from preheat_backends.python.model_config import ModelConfig
from preheat_backends.python.tensor import Tensor

MODULE = "triton_python_backend_utils"


class MetricKind(enum.Enum):
    """Kinds of metrics."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class MetricFamily:
    """Metrics of a model's own, which this server does not have: making one raises Unsupported."""

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    def __init__(self, *_: object, **__: object) -> None:
        raise unsupported("metrics of a model's own (MetricFamily)")


def get_input_tensor_by_name(inference_request: ReceivedRequest, name: str) -> Tensor | None:
    """The request's input called ``name``, None if the client sent none."""
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The response's output called ``name``, None if it has none."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the configuration says of the input called ``name``, None if nothing."""
    return next((each for each in model_config.get("input", ()) if each["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the configuration says of the output called ``name``, None if nothing."""
    return next((each for each in model_config.get("output", ()) if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether a request may have other than one response. The server refuses to load such a model."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled"))


def serialize_byte_tensor(input_tensor: Array) -> bytes:
    """The elements of an array of text or bytes, each after its length in four bytes."""
    return to_raw(datatypes.as_bytes(input_tensor))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """The flat array that :func:`serialize_byte_tensor` was given. Raises ValueError for other bytes."""
    count, offset = 0, 0
    while offset + 4 <= len(encoded_tensor):
        offset += 4 + struct.unpack_from("<I", encoded_tensor, offset)[0]
        count += 1
    return from_raw(DataType.BYTES, (count,), encoded_tensor)


def load_model(model_name: str, config: str = "", files: object = None) -> NoReturn:  # noqa: ARG001 - Triton's signature
    """Raise Unsupported."""
    raise unsupported("loading models from Python (load_model)")


def unload_model(model_name: str, unload_dependents: bool = False) -> NoReturn:  # noqa: ARG001, FBT001, FBT002 - Triton's signature
    """Raise Unsupported."""
    raise unsupported("unloading models from Python (unload_model)")


def is_model_ready(model_name: str, model_version: str = "") -> NoReturn:  # noqa: ARG001 - Triton's signature
    """Raise Unsupported."""
    raise unsupported("asking for other models from Python (is_model_ready)")


_CONTENT: Mapping[str, object] = {
    **{each.__name__: each for each in (Tensor, InferenceRequest, InferenceResponse, TritonError)},
    **{each.__name__: each for each in (TritonModelException, ModelConfig, MetricFamily, messages.PreferredMemory)},
    **{name: value for name, value in vars(messages).items() if name.startswith("TRITONSERVER_")},
    "TRITON_STRING_TO_NUMPY": datatypes.TRITON_STRING_TO_NUMPY,
    "triton_string_to_numpy": datatypes.triton_string_to_numpy,
    "triton_to_numpy_type": datatypes.triton_to_numpy_type,
    "numpy_to_triton_type": datatypes.numpy_to_triton_type,
    **{
        each.__name__: each
        for each in (
            get_input_tensor_by_name,
            get_output_tensor_by_name,
            get_input_config_by_name,
            get_output_config_by_name,
            using_decoupled_model_transaction_policy,
            serialize_byte_tensor,
            deserialize_bytes_tensor,
            load_model,
            unload_model,
            is_model_ready,
        )
    },
}


def interface_of(log: logging.Logger, folder: Path) -> ModuleType:
    """The module for the model that lies in ``folder`` and writes to ``log``."""
    return _make_module(log, lambda: str(folder))


def publish() -> None:
    """Let installed libraries import the module too. They learn nothing from it of the model that uses them."""

    def get_model_dir() -> NoReturn:
        raise unsupported("asking for a model's folder from outside its own files (get_model_dir)")

    sys.modules.setdefault(MODULE, _make_module(logging.getLogger("preheat.python"), get_model_dir))


def _make_module(log: logging.Logger, get_model_dir: Callable[[], str]) -> ModuleType:
    module = ModuleType(MODULE, __doc__)
    vars(module).update(_CONTENT, Logger=Logger(log), get_model_dir=get_model_dir)
    return module
