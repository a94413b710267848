"""Samples of ``model_warmup``: zeros, random values and files, each as the configuration says."""

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.declarations import datatype_value
from preheat.repository.warmup_samples import read_warmup_samples
from preheat.scheduling.warmup import Sample
from preheat.tensors import Array, DataType, to_raw


def read(text: str, folder: Path = Path("repository/m")) -> tuple[Sample, ...]:
    return read_warmup_samples(text_format.Parse(text, pb.ModelConfig()), folder, folder / "config.pbtxt")


def sample_of(source: str, *, datatype: str = "TYPE_FP32", dims: str = "2, 3") -> str:
    return f'model_warmup {{ inputs {{ key: "x" value {{ data_type: {datatype} dims: [ {dims} ] {source} }} }} }}'


def array_of(source: str, datatype: DataType, folder: Path = Path("repository/m")) -> Array:
    name = pb.DataType.Name(datatype_value(datatype))
    (sample,) = read(sample_of(source, datatype=name), folder)
    return sample.inputs["x"]


@pytest.mark.parametrize("datatype", DataType)
def test_zeros_are_of_the_type_and_shape_that_are_declared(datatype: DataType) -> None:
    array = array_of("zero_data: true", datatype)
    assert (array.dtype, array.shape) == (datatype.numpy, (2, 3))
    assert not array.any()
    assert datatype is not DataType.BYTES or set(array.flat) == {b""}


@pytest.mark.parametrize("datatype", DataType)
def test_random_values_are_in_range_and_the_same_on_every_load(datatype: DataType) -> None:
    first, second = (array_of("random_data: true", datatype) for _ in range(2))
    assert (first.dtype, first.shape) == (datatype.numpy, (2, 3))
    assert first.tolist() == second.tolist()
    if datatype is DataType.BYTES:
        assert all(isinstance(each, bytes) and each.decode().isprintable() for each in first.flat)
    else:
        most = 1 if datatype.numpy.kind in "fbV" else 126
        assert all(0 <= float(each) <= most for each in first.flat)
        assert len(set(first.ravel().tolist())) > 1


@pytest.mark.parametrize("datatype", DataType)
def test_a_file_holds_the_raw_tensor(tmp_path: Path, datatype: DataType) -> None:
    expected = array_of("random_data: true", datatype)
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.bin").write_bytes(to_raw(expected))
    array = array_of('input_data_file: "x.bin"', datatype, tmp_path)
    assert (array.dtype, array.tolist()) == (expected.dtype, expected.tolist())


def test_rows_count_and_name_are_those_declared_or_one_one_and_the_position() -> None:
    first, second = read('max_batch_size: 4 model_warmup {} model_warmup { name: "typical" batch_size: 4 count: 3 }')
    assert (first.name, first.rows, first.count) == ("0", 1, 1)
    assert (second.name, second.rows, second.count) == ("typical", 4, 3)


def test_a_scalar_of_a_model_without_a_batch_axis_has_no_dims() -> None:
    (sample,) = read(sample_of("zero_data: true", dims=""))
    assert sample.inputs["x"].shape == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model_warmup { batch_size: 2 }", "model_warmup[0]: batch_size: 2: must be 1 for a model without a batch"),
        (
            "max_batch_size: 4 model_warmup {} model_warmup { batch_size: 5 }",
            "model_warmup[1]: batch_size: 5: must be at most max_batch_size, 4",
        ),
        (sample_of("zero_data: true", datatype="TYPE_INVALID"), "inputs 'x': data_type: not set"),
        (sample_of("zero_data: true", datatype="99"), "inputs 'x': data_type"),
        (sample_of("zero_data: true", dims="2, 0"), "inputs 'x': dims: [2, 0]: must be sizes of at least 1"),
        (sample_of("zero_data: true", dims="-1"), "inputs 'x': dims: [-1]: must be sizes of at least 1"),
        (sample_of("zero_data: true", dims="9223372036854775807"), "inputs 'x': dims: "),
        (sample_of("random_data: true", dims="9223372036854775807"), "inputs 'x': dims: "),
        (sample_of(""), "inputs 'x': set one of zero_data, random_data and input_data_file"),
        (sample_of('input_data_file: "no.bin"'), "warmup/no.bin: No such file or directory"),
        (sample_of('input_data_file: "short.bin"'), "warmup/short.bin: expected 24 bytes, got 3"),
        (sample_of('input_data_file: ""'), "inputs 'x': input_data_file: "),
        (sample_of('input_data_file: "a\\000b"'), "inputs 'x': input_data_file: "),
        (sample_of('input_data_file: "../m/warmup/short.bin"'), "must be the plain name of a file in "),
        (sample_of('input_data_file: "/etc/passwd"'), "'/etc/passwd': must be the plain name of a file in "),
        (sample_of('input_data_file: ".."'), "inputs 'x': input_data_file: "),
    ],
)
def test_a_sample_that_cannot_be_is_refused_by_file_place_value_and_what_is_allowed(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short.bin").write_bytes(b"abc")
    with pytest.raises(InvalidConfig) as caught:
        read(text, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.pbtxt'}: model_warmup[")
    assert expected in str(caught.value)


def test_random_values_of_several_inputs_are_arrays_of_their_own() -> None:
    (sample,) = read(
        "model_warmup {"
        ' inputs { key: "a" value { data_type: TYPE_INT32 dims: [ 2 ] random_data: true } }'
        ' inputs { key: "b" value { data_type: TYPE_FP32 dims: [ 3 ] zero_data: true } } }'
    )
    assert sample.inputs.keys() == {"a", "b"}
    assert np.shape(sample.inputs["b"]) == (3,)
