"""Rows that are made up, and rows from a file in perf_analyzer's format."""

import base64
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loadtests.model import Model, Tensor
from loadtests.options import LoadOptions, LoadTestError, add_options, read_options
from loadtests.rows import made_up_rows, read_rows
from tritonclient.utils import triton_to_np_dtype

DATATYPES = (
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "BF16", "FP32", "FP64",
)  # fmt: skip


def model(*inputs: Tensor, optional: frozenset[str] = frozenset()) -> Model:
    return Model("m", "", 8, {tensor.name: tensor for tensor in inputs}, {}, optional)


def options(*arguments: str) -> LoadOptions:
    parser = ArgumentParser()
    add_options(parser)
    return read_options(parser.parse_args(["--model", "m", *arguments]))


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")
    return path


def read_one(folder: Path, tensor: Tensor, value: Any, *arguments: str) -> Any:
    (row,) = read_rows(write(folder, {tensor.name: value}), model(tensor), options(*arguments))
    return row[tensor.name]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_rows_are_made_up_of_values_that_any_model_takes(datatype: str) -> None:
    rows = made_up_rows(model(Tensor("x", datatype, (50,))), options(), count=2)
    for row in rows:
        assert row["x"].dtype == np.dtype(triton_to_np_dtype(datatype))
        assert set(np.unique(row["x"].astype(np.float64) // 1)) <= {0, 1}
    assert not np.array_equal(rows[0]["x"], rows[1]["x"])


def test_words_are_made_up_for_bytes() -> None:
    (row,) = made_up_rows(model(Tensor("x", "BYTES", (2, 3))), options(), count=1)
    assert row["x"].shape == (2, 3)
    assert all(isinstance(word, bytes) and word for word in row["x"].flat)


def test_the_same_rows_are_made_up_each_time() -> None:
    first, second = (made_up_rows(model(Tensor("x", "FP32", (9,))), options(), count=3) for _ in range(2))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))


def test_variable_dimensions_take_the_size_that_is_asked_for() -> None:
    tensors = Tensor("image", "UINT8", (3, -1, -1)), Tensor("ids", "INT64", (-1,))
    asked = options("--variable-size=16", "--shape=image:3,20,30")
    (row,) = made_up_rows(model(*tensors), asked, count=1)
    assert (row["image"].shape, row["ids"].shape) == ((3, 20, 30), (16,))


@pytest.mark.parametrize("shape", ["x:3", "x:4,3", "x:3,4,5"])
def test_a_shape_that_the_model_does_not_take_is_refused(shape: str) -> None:
    with pytest.raises(LoadTestError, match=r"--shape: x: .* the model takes \[3, -1\]"):
        made_up_rows(model(Tensor("x", "FP32", (3, -1))), options(f"--shape={shape}"), count=1)


def test_a_tensor_in_a_file_has_its_values_in_row_major_order(tmp_path: Path) -> None:
    array = read_one(tmp_path, Tensor("x", "INT32", (2, 2)), [1, 2, 3, 4])
    assert (array.dtype, array.tolist()) == (np.int32, [[1, 2], [3, 4]])


def test_a_tensor_in_a_file_may_say_its_shape(tmp_path: Path) -> None:
    value = {"content": [0.5, 1, 2], "shape": [3]}
    assert read_one(tmp_path, Tensor("x", "FP16", (-1,)), value, "--variable-size=9").tolist() == [0.5, 1, 2]


@pytest.mark.parametrize("nested", [True, False])
def test_a_tensor_in_a_file_may_be_its_bytes(tmp_path: Path, nested: bool) -> None:
    encoded: dict[str, Any] = {"b64": base64.b64encode(np.array([7, -7], np.int64).tobytes()).decode()}
    value = {"content": encoded} if nested else encoded
    assert read_one(tmp_path, Tensor("x", "INT64", (-1,)), value | {"shape": [2]}).tolist() == [7, -7]


def test_words_in_a_file_are_text_or_their_bytes_after_their_lengths(tmp_path: Path) -> None:
    tensor = Tensor("x", "BYTES", (2,))
    assert read_one(tmp_path, tensor, ["é", "b"]).tolist() == ["é".encode(), b"b"]
    encoded = base64.b64encode(b"\1\0\0\0a\2\0\0\0\xff\0").decode()
    assert read_one(tmp_path, tensor, {"b64": encoded}).tolist() == [b"a", b"\xff\0"]


def test_only_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    tensors = Tensor("x", "INT32", (1,)), Tensor("bias", "INT32", (1,))
    path = write(tmp_path, {"x": [1]})
    (row,) = read_rows(path, model(*tensors, optional=frozenset({"bias"})), options())
    assert list(row) == ["x"]
    with pytest.raises(LoadTestError, match=r"data\[0\]: has x; the model takes x, bias"):
        read_rows(path, model(*tensors), options())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], "2 values do not make the shape"),
        ([1, 2, 300], "300"),
        ([1, 2, 2.5], "no UINT8"),
        ([1, 2, "3"], "no UINT8"),
        ([[1, 2], [3]], "inhomogeneous"),
        ({"content": [1, 2], "shape": [2]}, "shape [2]: the model takes [3]"),
        ({"content": [1, 2], "shape": ["a"]}, "the model takes [3]"),
        ({"b64": "AQI="}, "2 values do not make the shape"),
        ({"b64": "A!"}, "b64"),
        ({"shape": [3]}, "must be a list of values"),
        ("1,2,3", "must be a list of values"),
    ],
)
def test_a_tensor_that_cannot_be_is_named_with_its_place(tmp_path: Path, value: Any, reason: str) -> None:
    with pytest.raises(LoadTestError) as caught:
        read_one(tmp_path, Tensor("x", "UINT8", (3,)), value)
    assert "rows.json: data[0]: x: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "an object with 'data'"),
        ('{"data": [{"x": [1]}], "answers": []}', "no more than 'validation_data'"),
        ('{"data": []}', "a list of objects"),
        ('{"data": [[{"x": [1]}]]}', "a list of objects"),
        ('{"data": [{"y": [1]}]}', "has y; the model takes x"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LoadTestError) as caught:
        read_rows(path, model(Tensor("x", "INT32", (1,))), options())
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="No such file"):
        read_rows(tmp_path / "absent.json", model(Tensor("x", "INT32", (1,))), options())
