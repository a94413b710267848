"""A model of each backend for each thing that can be wrong with a tensor, with what it is asked and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tests.backends import cases
from tests.e2e.server_process import write_model
from tests.e2e.wire import Tensor, infer_request
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from preheat.tensors import DataType

Array: TypeAlias = NDArray[Any]

MAX_BATCH_SIZE = 3
# What is -1 in a configuration lies between these.
LONGEST = 64
# Sizes of tensors as configurations have them: by name, type and dims.
Declared: TypeAlias = Mapping[str, tuple[str, Sequence[int]]]

_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "INT8": np.int8, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
# The typed contents of the datatypes here that have any.
FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the inputs of a correct request, and the outputs of its answer, right within ``tolerance``.

    ``batches``: axis 0 is the batch, 1 to MAX_BATCH_SIZE. ``optional`` inputs are in the configuration but not in the
    request. ``varies``: the last axis of every input may be 1 to LONGEST, the same in all. ``looks_up``: a value may be
    an index out of bounds, which fails its request.
    """

    name: str
    config: str
    build: Callable[[Path], None]
    datatypes: Mapping[str, str]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: float = 1e-6
    batches: bool = True
    varies: bool = False
    optional: Sequence[str] = ()
    looks_up: bool = False

    def write(self, repository: Path) -> None:
        """Write the model into a repository."""
        self.build(write_model(repository, self.name, self.config) / "1")

    def tensors(self) -> list[Tensor]:
        """The inputs of a correct request, without data."""
        return [Tensor(name, self.datatypes[name], array.shape) for name, array in self.inputs.items()]

    def raw(self) -> list[bytes]:
        """The data that belongs to :meth:`tensors`."""
        return [as_raw(array) for array in self.inputs.values()]

    def requests(self) -> list[bytes]:
        """Correct requests: raw, and typed where there is a field for it."""
        requests = [infer_request(self.name, self.tensors(), self.raw())]
        if all(datatype in FIELDS for datatype in self.datatypes.values()):
            requests.append(infer_request(self.name, self.typed()))
        return requests

    def typed(self) -> list[Tensor]:
        """The inputs of a correct request, with typed data where there is a field for it."""
        return [replace(each, contents=self._contents(each)) for each in self.tensors()]

    def _contents(self, tensor: Tensor) -> Mapping[str, Sequence[Any]] | None:
        field = FIELDS.get(tensor.datatype)
        return None if field is None else {field: self.inputs[tensor.name].ravel().tolist()}

    def assert_answered(self, response: Any) -> None:
        """Hold a ModelInferResponse to a correct request against what is right."""
        pairs = zip(response.outputs, response.raw_output_contents, strict=True)
        answer = {output.name: from_raw(output.datatype, output.shape, raw) for output, raw in pairs}
        assert answer.keys() == self.outputs.keys(), self.name
        for name, expected in self.outputs.items():
            assert answer[name].shape == expected.shape, self.name
            if expected.dtype == np.float32:
                np.testing.assert_allclose(answer[name], expected, rtol=self.tolerance, atol=self.tolerance)
            else:
                assert answer[name].tolist() == expected.tolist(), self.name


def as_raw(array: Array) -> bytes:
    """The binary tensor format, as a client writes it."""
    if array.dtype.kind != "O":
        return array.tobytes()
    raw: bytes = serialize_byte_tensor(array).item()
    return raw


def from_raw(datatype: str, shape: Sequence[int], raw: bytes) -> Array:
    """The array that a client reads."""
    if datatype == "BYTES":
        elements: Array = deserialize_bytes_tensor(raw)
        return elements.reshape(tuple(shape))
    return np.frombuffer(raw, _NUMPY[datatype]).reshape(tuple(shape))


def _config(
    backend: str,
    inputs: Declared | None = None,
    outputs: Declared | None = None,
    *,
    max_batch_size: int = MAX_BATCH_SIZE,
    optional: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
) -> str:
    lines = [f'backend: "{backend}"', f"max_batch_size: {max_batch_size}"]
    lines += ["dynamic_batching { }"] if max_batch_size else []
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for name, (datatype, dims) in (tensors or {}).items():
            extra = "optional: true" if name in optional else ""
            lines.append(f'{kind} {{ name: "{name}" data_type: TYPE_{datatype} dims: {list(dims)} {extra} }}')
    for key, value in (parameters or {}).items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


_ROWS = np.array([[1, -2, 3, 0.5], [0, 0.25, -1, 8]], np.float32)
_PAIR: dict[str, Array] = {
    "values": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    "mask": np.array([[1, 0, 1], [0, 1, 1]], np.int64),
}
_PAIR_TYPES = {"values": "FP32", "mask": "INT64"}
_PAIR_INPUTS: Declared = {"values": ("FP32", [-1]), "mask": ("INT64", [-1])}
_PAIR_OUTPUTS: Declared = {"masked": ("FP32", [-1]), "total": ("FP32", [1])}
_ECHO_OUTPUTS: Declared = {"values_again": ("FP32", [-1]), "mask_again": ("INT64", [-1])}


def _linear(name: str, backend: str, build: Callable[[Path], None], **parameters: str) -> Subject:
    """A model of one FP32 input ``x`` of four numbers, and an output ``y`` of three."""
    config = _config(backend, {"x": ("FP32", [4])}, {"y": ("FP32", [3])}, parameters=parameters)
    outputs = dict(cases.linear_reference({"x": _ROWS}))
    tolerance = 2e-2 if backend == "torchao" else 1e-5
    return Subject(name, config, build, {"x": "FP32"}, {"x": _ROWS}, outputs, tolerance)


def _named(*tensors: str) -> dict[str, str]:
    """Parameters that call the axis of each tensor "sequence"."""
    names = {f"preheat.shape.{tensor}": "sequence" for tensor in tensors}
    return {**names, "preheat.dimension.sequence": f"1..{LONGEST}"}


def _pair(name: str, config: str, build: Callable[[Path], None], outputs: Mapping[str, Array]) -> Subject:
    """A model of two inputs, which must be as long as each other."""
    return Subject(name, config, build, _PAIR_TYPES, _PAIR, outputs, varies=True)


def _copy(backend: str, kind: str, datatype: DataType, build: Callable[[Path, DataType], None]) -> Subject:
    """A model that answers its input ``x`` of three elements as ``y``."""
    wire = "STRING" if datatype is DataType.BYTES else datatype.value
    config = _config(backend, {"x": (wire, [3])}, {"y": (wire, [3])})
    rows = np.array([[1, 0, 1], [0, 0, 1]])
    array = _TEXTS if datatype is DataType.BYTES else rows.astype(_NUMPY[datatype.value])
    if backend == "onnxruntime" and datatype is DataType.BYTES:
        array = np.array([[b"a\0b", b"", "é".encode()]], np.object_)
    write = partial(_build_copy, build, datatype)
    return Subject(f"{backend}_{kind}", config, write, {"x": datatype.value}, {"x": array}, {"y": array})


def _build_copy(build: Callable[[Path, DataType], None], datatype: DataType, folder: Path) -> None:
    build(folder, datatype)


_TEXTS = np.array([[b"a\0b", b"", "é".encode()], [b"\xff\xfe", b"x" * 300, b"0"]], np.object_)
_REFERENCE = dict(cases.pair_reference(_PAIR))
_ECHOED = {f"{name}_again": array for name, array in _PAIR.items()}
_NO_BATCH = np.array([[1, 2], [3, 4.5]], np.float32)

_OPTIONAL_SOURCE = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            extra = pb_utils.get_input_tensor_by_name(request, "extra")
            y = x if extra is None else x + extra.as_numpy()
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])
"""


def _save_optional(folder: Path) -> None:
    cases.save_python(folder, _OPTIONAL_SOURCE)


_DOUBLE_PAIR = _config("double", _PAIR_INPUTS, _ECHO_OUTPUTS, parameters=_named(*_PAIR_INPUTS, *_ECHO_OUTPUTS))
_PAIR_NAMES = _named(*_PAIR_INPUTS, "masked")
_EAGER_PY_PAIR = _config("eager", _PAIR_INPUTS, _PAIR_OUTPUTS, parameters=_PAIR_NAMES)
_PYTHON_PAIR = _config("python", _PAIR_INPUTS, _PAIR_OUTPUTS, parameters=_PAIR_NAMES)
_WHOLE = _config("double", {"x": ("FP32", [2, 2])}, {"y": ("FP32", [2, 2])}, max_batch_size=0)
_OPTIONAL = _config("python", {"x": ("FP32", [4]), "extra": ("FP32", [4])}, {"y": ("FP32", [4])}, optional=["extra"])

SUBJECTS = (
    _pair("double_pair", _DOUBLE_PAIR, cases.save_nothing, _ECHOED),
    Subject(
        "double_whole", _WHOLE, cases.save_nothing, {"x": "FP32"}, {"x": _NO_BATCH}, {"y": _NO_BATCH}, batches=False
    ),
    _copy("double", "texts", DataType.BYTES, cases.save_nothing),
    _copy("double", "truth", DataType.BOOL, cases.save_nothing),
    _copy("double", "bf16", DataType.BF16, cases.save_nothing),
    _linear("eager_program", "eager", cases.save_linear_program),
    _linear("eager_module", "eager", cases.save_linear_python),
    _pair("eager_program_pair", _config("eager"), cases.save_pair_program, _REFERENCE),
    _pair("eager_module_pair", _EAGER_PY_PAIR, cases.save_pair_python, _REFERENCE),
    _copy("eager", "truth", DataType.BOOL, cases.save_copy_python),
    _copy("eager", "small", DataType.INT8, cases.save_copy_python),
    _copy("eager", "bf16", DataType.BF16, cases.save_copy_python),
    _linear("torch_compile_module", "torch_compile", cases.save_linear_python),
    _linear("torchao_module", "torchao", cases.save_linear_python, quantization="int8_weight_only"),
    _linear("onnxruntime_linear", "onnxruntime", cases.save_linear_graph),
    _pair("onnxruntime_pair", _config("onnxruntime"), cases.save_pair_graph, _REFERENCE),
    _copy("onnxruntime", "texts", DataType.BYTES, cases.save_copy_graph),
    _copy("onnxruntime", "truth", DataType.BOOL, cases.save_copy_graph),
    _copy("onnxruntime", "half", DataType.FP16, cases.save_copy_graph),
    _linear("openvino_linear", "openvino", cases.save_linear_ir),
    _pair("openvino_pair", _config("openvino"), cases.save_pair_graph, _REFERENCE),
    _copy("openvino", "truth", DataType.BOOL, cases.save_copy_graph),
    _copy("openvino", "half", DataType.FP16, cases.save_copy_graph),
    replace(_pair("aot_inductor_pair", _config("aot_inductor"), cases.save_own_package, _REFERENCE), looks_up=True),
    _linear("torchscript_linear", "torchscript", cases.save_linear_script),
    _pair("torchscript_pair", _config("torchscript", _PAIR_INPUTS, _PAIR_OUTPUTS, parameters=_PAIR_NAMES),
          cases.save_pair_script, _REFERENCE),
    _copy("torchscript", "truth", DataType.BOOL, cases.save_copy_script),
    _copy("torchscript", "bf16", DataType.BF16, cases.save_copy_script),
    _pair("python_pair", _PYTHON_PAIR, cases.save_triton_pair, _REFERENCE),
    _copy("python", "texts", DataType.BYTES, cases.save_triton_copy),
    _copy("python", "truth", DataType.BOOL, cases.save_triton_copy),
    _copy("python", "half", DataType.FP16, cases.save_triton_copy),
    Subject(
        "python_optional", _OPTIONAL, _save_optional, {"x": "FP32"}, {"x": _ROWS}, {"y": _ROWS}, optional=["extra"]
    ),
)  # fmt: skip
