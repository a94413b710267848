"""``triton_python_backend_utils``: what a model makes of its own accord, without a server."""

import importlib
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.backends.triton_models import opened, outputs_of, telling, write
from torch.utils.dlpack import from_dlpack

from preheat.backend import Dimension, Request, Signature, TensorSpec
from preheat.tensors import DataType
from preheat_backends.torch_tensors import datatype_of

pb_utils: Any = importlib.import_module("triton_python_backend_utils")


# --- Tensors -----------------------------------------------------------------------------------------------------


def test_a_tensor_is_a_name_and_an_array() -> None:
    array = np.zeros((2, 3), np.float32)
    tensor = pb_utils.Tensor("x", array)
    assert (tensor.name(), tensor.shape(), tensor.is_cpu(), tensor.triton_dtype()) == ("x", [2, 3], True, 11)
    assert tensor.as_numpy() is array


def test_a_scalar_keeps_its_shape() -> None:
    assert pb_utils.Tensor("x", np.array(5)).shape() == []


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        (("x", [1, 2]), TypeError, r"Tensor: the array .* must be ndarray, not list"),
        ((1, np.zeros(1)), TypeError, r"Tensor: name must be str, not int"),
        (("", np.zeros(1)), pb_utils.TritonModelException, "cannot be empty"),
        (("x", np.zeros(1, complex)), pb_utils.TritonModelException, "'x': numpy's complex128 is no datatype"),
        (("x", np.zeros(1, "datetime64[s]")), pb_utils.TritonModelException, "'x': numpy's datetime64"),
    ],
)
def test_what_is_no_tensor_is_refused(arguments: tuple[Any, ...], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        pb_utils.Tensor(*arguments)


@pytest.mark.parametrize("export", [lambda given: given, lambda given: given.to_dlpack()], ids=["itself", "capsule"])
def test_torch_takes_a_tensor_without_a_copy(export: Any) -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    taken = from_dlpack(export(pb_utils.Tensor("x", array)))
    array[0, 0] = 7
    assert taken.tolist() == [[7, 1, 2], [3, 4, 5]]


def test_numpy_takes_a_tensor() -> None:
    assert np.from_dlpack(pb_utils.Tensor("x", np.arange(3))).tolist() == [0, 1, 2]


def test_torch_may_write_to_an_input_that_came_read_only(tmp_path: Path) -> None:
    body = "taken = torch.from_dlpack(request.inputs()[0])\ntaken += 1\nreturn str(request.inputs()[0].as_numpy())"
    signature = Signature((), (TensorSpec("text", DataType.BYTES, (Dimension(),)),))
    array = np.zeros(2, np.float32)
    array.setflags(write=False)
    with opened(write(tmp_path, telling(body, imports="import torch")), signature) as session:
        (outcome,) = session.execute([Request("", {"x": array}, 1, (), {})])
    assert outputs_of(outcome)["text"].tolist() == [b"[1. 1.]"]
    assert array.tolist() == [0, 0]


@pytest.mark.parametrize("array", [np.array(["a"], np.object_), np.zeros(1, ml_dtypes.bfloat16)], ids=["BYTES", "BF16"])
def test_what_dlpack_cannot_carry_is_refused_saying_what_can(array: Any) -> None:
    with pytest.raises(
        pb_utils.TritonModelException, match=r"tensor 'x': (BYTES|BF16) has no DLPack here; use as_numpy"
    ):
        pb_utils.Tensor("x", array).to_dlpack()


@pytest.mark.parametrize(
    "export", [lambda tensor: tensor, lambda tensor: tensor.__dlpack__()], ids=["itself", "capsule"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int8, torch.float16, torch.bfloat16])
def test_a_tensor_of_torch_is_taken(export: Any, dtype: torch.dtype) -> None:
    tensor = pb_utils.Tensor.from_dlpack("y", export(torch.tensor([[1, 0, 1]]).to(dtype)))
    assert (tensor.name(), tensor.shape()) == ("y", [1, 3])
    assert tensor.as_numpy().astype(np.float32).tolist() == [[1, 0, 1]]
    assert DataType.of(tensor.as_numpy().dtype) is datatype_of(dtype)


def test_what_numpy_cannot_hold_is_refused_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    capsule = torch.zeros(3, dtype=torch.bfloat16).__dlpack__()
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(pb_utils.TritonModelException, match=r"tensor 'y': \w+"):
        pb_utils.Tensor.from_dlpack("y", capsule)


def test_an_array_of_numpy_is_taken() -> None:
    assert pb_utils.Tensor.from_dlpack("y", np.arange(3)).as_numpy().tolist() == [0, 1, 2]


def test_a_tensor_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(pb_utils.TritonModelException, match="'y': DLPack tensors must be contiguous"):
        pb_utils.Tensor.from_dlpack("y", torch.zeros(2, 3).T)


def test_what_has_no_dlpack_is_refused() -> None:
    with pytest.raises(TypeError, match="'y': list has no __dlpack__"):
        pb_utils.Tensor.from_dlpack("y", [1, 2])


# --- Requests and responses --------------------------------------------------------------------------------------


def test_a_response_is_outputs_or_an_error() -> None:
    tensor = pb_utils.Tensor("y", np.zeros(1))
    response = pb_utils.InferenceResponse([tensor], parameters={"k": 1})
    assert (response.output_tensors(), response.has_error(), response.error()) == ([tensor], False, None)
    assert response.parameters() == '{"k": 1}'
    assert pb_utils.get_output_tensor_by_name(response, "y") is tensor
    assert pb_utils.get_output_tensor_by_name(response, "z") is None
    error = pb_utils.TritonError("no luck", pb_utils.TritonError.NOT_FOUND)
    assert (error.message(), str(error), error.code()) == ("no luck", "no luck", pb_utils.TritonError.NOT_FOUND)
    assert pb_utils.InferenceResponse(error=error).has_error()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: pb_utils.InferenceResponse([1]), "each of output_tensors must be Tensor, not int"),
        (lambda: pb_utils.InferenceResponse(error="no luck"), r"error must be .*TritonError \| None, not str"),
        (
            lambda: pb_utils.InferenceResponse(parameters={"k": []}),
            r"parameter 'k' must be bool \| int \| float \| str",
        ),
        (lambda: pb_utils.InferenceResponse(parameters={1: 1}), "a key of parameters must be str"),
        (lambda: pb_utils.TritonError(1), "message must be str, not int"),
        (lambda: pb_utils.TritonError("no luck", 3), "code .* must be ErrorCode, not int"),
    ],
)
def test_what_cannot_be_answered_is_refused_where_it_is_made(make: Any, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        make()


# --- Datatypes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number", "dtype"),
    [
        ("TYPE_BOOL", 1, np.bool_),
        ("TYPE_UINT8", 2, np.uint8),
        ("TYPE_UINT16", 3, np.uint16),
        ("TYPE_UINT32", 4, np.uint32),
        ("TYPE_UINT64", 5, np.uint64),
        ("TYPE_INT8", 6, np.int8),
        ("TYPE_INT16", 7, np.int16),
        ("TYPE_INT32", 8, np.int32),
        ("TYPE_INT64", 9, np.int64),
        ("TYPE_FP16", 10, np.float16),
        ("TYPE_FP32", 11, np.float32),
        ("TYPE_FP64", 12, np.float64),
        ("TYPE_STRING", 13, np.object_),
        ("TYPE_BF16", 14, ml_dtypes.bfloat16),
    ],
)
def test_every_datatype_has_its_name_and_number(name: str, number: int, dtype: type) -> None:
    assert pb_utils.triton_string_to_numpy(name) is dtype
    assert pb_utils.TRITON_STRING_TO_NUMPY[name] is dtype
    assert pb_utils.triton_to_numpy_type(number) is dtype
    assert pb_utils.numpy_to_triton_type(dtype) == number
    assert pb_utils.numpy_to_triton_type(np.dtype(dtype)) == number


def test_other_datatypes_have_none() -> None:
    assert pb_utils.numpy_to_triton_type(np.complex64) is None
    assert pb_utils.triton_to_numpy_type(0) is None
    assert pb_utils.triton_to_numpy_type(15) is None
    with pytest.raises(KeyError):
        pb_utils.triton_string_to_numpy("FP32")


def test_text_is_serialized_with_its_lengths() -> None:
    serialized = pb_utils.serialize_byte_tensor(np.array(["é", b""], np.object_))
    assert serialized == b"\2\0\0\0\xc3\xa9\0\0\0\0"
    assert pb_utils.deserialize_bytes_tensor(serialized).tolist() == ["é".encode(), b""]
    with pytest.raises(ValueError, match="got more: bytes follow the last one"):
        pb_utils.deserialize_bytes_tensor(serialized + b"\1\0")


def test_every_name_of_triton_s_module_is_there() -> None:
    """As tritonserver 2.51 has them."""
    expected = {
        "InferenceRequest", "InferenceResponse", "Logger", "MetricFamily", "ModelConfig", "PreferredMemory",
        "TRITONSERVER_MEMORY_CPU", "TRITONSERVER_MEMORY_GPU", "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
        "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START", "TRITONSERVER_REQUEST_RELEASE_ALL",
        "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE", "TRITONSERVER_RESPONSE_COMPLETE_FINAL", "TRITON_STRING_TO_NUMPY",
        "Tensor", "TritonError", "TritonModelException", "deserialize_bytes_tensor", "get_input_config_by_name",
        "get_input_tensor_by_name", "get_model_dir", "get_output_config_by_name", "get_output_tensor_by_name",
        "is_model_ready", "load_model", "numpy_to_triton_type", "serialize_byte_tensor", "triton_string_to_numpy",
        "triton_to_numpy_type", "unload_model", "using_decoupled_model_transaction_policy",
    }  # fmt: skip
    assert expected <= set(dir(pb_utils))


def test_configurations_are_searched_by_name() -> None:
    config = {"input": [{"name": "x"}], "output": [{"name": "y"}]}
    assert pb_utils.get_input_config_by_name(config, "x") == {"name": "x"}
    assert pb_utils.get_output_config_by_name(config, "y") == {"name": "y"}
    assert pb_utils.get_output_config_by_name(config, "x") is None
    assert pb_utils.get_input_config_by_name({}, "x") is None
    assert not pb_utils.using_decoupled_model_transaction_policy(config)
    assert pb_utils.using_decoupled_model_transaction_policy({"model_transaction_policy": {"decoupled": True}})
