"""``model_warmup``: sample inputs a model is warmed with.

As in Triton: each sample names every input it sets, as zeros, random values or the raw contents of a file in the
model's ``warmup`` folder, for one row; ``batch_size`` rows are run, ``count`` times.
"""

import math
from pathlib import Path

import numpy as np

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.declarations import datatype_of
from preheat.scheduling.warmup import Sample
from preheat.tensors import Array, DataType, from_raw, zeros

WARMUP_FOLDER = "warmup"
_MAX_BYTES = 2**31 - 1


def read_warmup_samples(proto: pb.ModelConfig, folder: Path, file: Path) -> tuple[Sample, ...]:
    """The samples of ``proto``, the configuration in ``file`` of the model in ``folder``. Raises InvalidConfig."""
    samples: list[Sample] = []
    for position, sample in enumerate(proto.model_warmup):
        where = f"{file}: model_warmup[{position}]"
        rows = sample.batch_size or 1
        if proto.max_batch_size == 0 and rows != 1:
            raise InvalidConfig(f"{where}: batch_size: {rows}: must be 1 for a model without a batch axis")
        if rows > max(1, proto.max_batch_size):
            raise InvalidConfig(f"{where}: batch_size: {rows}: must be at most max_batch_size, {proto.max_batch_size}")
        inputs = {name: _read_input(spec, folder, f"{where}: inputs '{name}'") for name, spec in sample.inputs.items()}
        samples.append(Sample(sample.name or str(position), inputs, rows, sample.count or 1))
    return tuple(samples)


def _read_input(spec: pb.ModelWarmup.Input, folder: Path, where: str) -> Array:
    datatype = datatype_of(spec.data_type, where)
    shape = tuple(spec.dims)
    if any(size < 1 for size in shape):
        raise InvalidConfig(f"{where}: dims: {list(shape)}: must be sizes of at least 1")
    if math.prod(shape) * (datatype.itemsize or 1) > _MAX_BYTES:
        raise InvalidConfig(f"{where}: dims: {list(shape)}: more than the {_MAX_BYTES} bytes that a request can carry")
    source = spec.WhichOneof("input_data_type")
    if source is None:
        raise InvalidConfig(f"{where}: set one of zero_data, random_data and input_data_file")
    if source == "input_data_file":
        return _read_file(spec.input_data_file, folder, datatype, shape, where)
    return zeros(datatype, shape) if source == "zero_data" else _random(datatype, shape)


def _read_file(name: str, folder: Path, datatype: DataType, shape: tuple[int, ...], where: str) -> Array:
    path = folder / WARMUP_FOLDER / name
    if Path(name).name != name:
        raise InvalidConfig(f"{where}: input_data_file: {name!r}: must be the plain name of a file in {path.parent}")
    try:
        return from_raw(datatype, shape, path.read_bytes())
    except OSError as exc:
        raise InvalidConfig(f"{where}: input_data_file: {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise InvalidConfig(f"{where}: input_data_file: {path}: {exc}") from exc


def _random(datatype: DataType, shape: tuple[int, ...]) -> Array:
    """Values from 0 up to 1 for floats, from 0 up to 127 for integers, printable bytes for BYTES.

    The same on every load.
    """
    generator = np.random.default_rng(0)
    if datatype is DataType.BYTES:
        array = np.empty(math.prod(shape), np.object_)
        array[:] = [bytes(generator.integers(32, 127, 16, dtype=np.uint8)) for _ in range(array.size)]
        return array.reshape(shape)
    if datatype is DataType.BOOL:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if datatype in (DataType.FP16, DataType.FP32, DataType.FP64, DataType.BF16):
        return generator.random(shape).astype(datatype.numpy)
    return generator.integers(0, 127, shape).astype(datatype.numpy)
