"""The shapes that a configuration has warmed, and what requests are padded to them with."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from preheat.backend import Buckets, Dimension, Outside, Signature, TensorSpec
from preheat.errors import InvalidConfig
from preheat.repository.configuration import ModelConfiguration
from preheat.scheduling.padding import PadValues
from preheat.tensors import DataType


def default_buckets(max_batch_size: int) -> tuple[int, ...]:
    """Powers of two up to, and always including, ``max_batch_size``: 6 gives 1, 2, 4, 6. None without a batch axis."""
    if max_batch_size < 1:
        return ()
    powers = (1 << exponent for exponent in range(max_batch_size.bit_length()))
    return tuple(sorted({*powers, max_batch_size}))


def read_buckets(configuration: ModelConfiguration, signature: Signature) -> Buckets:
    """The shapes to warm. Raises InvalidConfig for buckets that no request could have, or that miss some."""
    server = configuration.server
    for name, sizes in server.size_buckets.items():
        _check_sizes(name, sizes, signature, f"{configuration.file}: parameters: preheat.buckets.{name}")
    for key, value in (("outside_buckets", server.outside_buckets), ("padding_tolerance", server.padding_tolerance)):
        if value is not None and not server.size_buckets:
            raise InvalidConfig(
                f"{configuration.file}: parameters: preheat.{key}: no dimension has buckets; set preheat.buckets.NAME"
            )
    return Buckets(_rows(configuration, signature), server.size_buckets, server.outside_buckets or Outside.REFUSE)


def pad_values(configuration: ModelConfiguration, signature: Signature) -> PadValues:
    """The pad value of every input that has an axis with buckets. Raises InvalidConfig for one too few or too many."""
    sizes, pads = configuration.server.size_buckets, configuration.server.pads
    padded = {spec.name: spec for spec in signature.inputs if any(axis.name in sizes for axis in spec.shape)}
    for name in sorted(pads):
        if name not in padded:
            raise InvalidConfig(
                f"{configuration.file}: parameters: preheat.pad.{name}: no input of that name has an axis with "
                f"buckets, only {sorted(padded)} have; list the sizes in preheat.buckets.NAME"
            )
    for name in sorted(padded):
        if name not in pads:
            raise InvalidConfig(
                f"{configuration.file}: parameters: preheat.pad.{name}: not set, and input '{name}' has an axis with "
                "buckets; say what it is padded with, such as 0"
            )
    return {
        name: _pad_value(spec, pads[name], f"{configuration.file}: parameters: preheat.pad.{name}")
        for name, spec in padded.items()
    }


def _rows(configuration: ModelConfiguration, signature: Signature) -> tuple[int, ...]:
    rows, most = configuration.server.buckets, configuration.max_batch_size
    if rows and rows[-1] != most:
        raise InvalidConfig(
            f"{configuration.file}: parameters: preheat.buckets: the largest must be max_batch_size, {most}, "
            f"it is {rows[-1]}"
        )
    if signature.row_independent or configuration.server.accept_row_dependence:
        return rows or default_buckets(most)
    # A row of padding would change the answers, so no batch may need any.
    if rows and len(rows) != most:
        raise InvalidConfig(
            f"{configuration.file}: parameters: preheat.buckets: each answer of this model depends on the rows it "
            f"shares a batch with, so every size from 1 to {most} is a bucket of its own; leave them out, or set "
            "preheat.accept_row_dependence: true"
        )
    return tuple(range(1, most + 1))


def _check_sizes(name: str, sizes: tuple[int, ...], signature: Signature, where: str) -> None:
    axes = dict(_varying(signature.inputs))
    if name not in axes:
        raise InvalidConfig(
            f"{where}: no input has a varying dimension of that name; there are {sorted(axes)}; "
            "parameter preheat.shape.INPUT names an input's dimensions"
        )
    for size in sizes:
        if not axes[name].allows(size):
            raise InvalidConfig(f"{where}: {size}: the dimension is {axes[name]}")


def _varying(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[str, Dimension]]:
    return ((axis.name, axis) for spec in specs for axis in spec.shape if axis.name and axis.size is None)


def _pad_value(spec: TensorSpec, text: str, where: str) -> bool | int | float | bytes:
    datatype = spec.datatype
    if datatype is DataType.BYTES:
        return text.encode()
    try:
        if datatype is DataType.BOOL:
            return _BOOLEANS[text]
        value = int(text) if datatype.numpy.kind in "iu" else float(text)
        _check_range(value, datatype)
    except (KeyError, ValueError):
        raise InvalidConfig(f"{where}: {text!r}: must be a value of {datatype.value}") from None
    return value


def _check_range(value: float, datatype: DataType) -> None:
    """Raise ValueError for a number that the type cannot hold."""
    if datatype.numpy.kind in "iu":
        bounds = np.iinfo(datatype.numpy)
        fits = bounds.min <= value <= bounds.max
    else:
        with np.errstate(over="ignore"):
            fits = not np.isinf(datatype.numpy.type(value)) or math.isinf(value)
    if not fits:
        raise ValueError(value)


_BOOLEANS: Mapping[str, bool] = {"true": True, "false": False}
