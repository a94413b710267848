"""Samples that a network is shown, to see how large its activations are: a file in the version's folder.

It is in safetensors' format and has a tensor for each input, by the input's name. Axis 0 counts samples; what follows
is the shape of one, without a batch axis.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from preheat.backend import ModelSource, Signature, TensorSpec
from preheat.errors import InvalidArtifact
from preheat_backends.artifacts import Kind, Takes, is_plain_name, sniff
from preheat_backends.torch_programs.program import first_line
from preheat_backends.torch_tensors import DTYPES

DEFAULT_CALIBRATION = "calibration.safetensors"


def read_calibration(source: ModelSource, name: str, signature: Signature) -> Sequence[Mapping[str, torch.Tensor]]:
    """The samples in the file ``name``, in batches as large as ``signature`` allows, by the names of inputs.

    Raises InvalidConfig for a name that is no file's in the version's folder, InvalidArtifact for a file that is not
    there, damaged, or does not fit ``signature``.
    """
    if not is_plain_name(name):
        raise source.refuse("calibration", name, "must be a file's name in the version's folder")
    path = source.version_path / name
    samples = _load(path, signature)
    _check_names(path, samples, signature)
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        _check_tensor(path, spec, samples[spec.name], sizes)
    count = min(len(tensor) for tensor in samples.values())
    if count == 0 or any(len(tensor) != count for tensor in samples.values()):
        counts = ", ".join(f"{name!r} has {len(tensor)}" for name, tensor in samples.items())
        raise InvalidArtifact(f"{path}: every input must have the same number of samples, at least 1; {counts}")
    if not signature.batches:
        return [{name: tensor[index] for name, tensor in samples.items()} for index in range(count)]
    rows = signature.max_batch_size
    return [{name: tensor[start : start + rows] for name, tensor in samples.items()} for start in range(0, count, rows)]


def _load(path: Path, signature: Signature) -> dict[str, torch.Tensor]:
    if not path.exists():
        inputs = ", ".join(f"{spec.name!r}: samples of it" for spec in signature.inputs)
        raise InvalidArtifact(
            f"{path}: no such file; quantization: pt2e_static measures activations on samples of real inputs, stacked "
            f"along a first axis: safetensors.torch.save_file({{{inputs}}}, {path.name!r}) writes one"
        )
    takes = Takes("torchao", (path.name,), frozenset({Kind.SAFETENSORS}), "a safetensors file of samples")
    kind = sniff(path)
    if kind not in takes.kinds:
        raise takes.refuse(path, kind)
    try:
        return load_file(path)
    except Exception as exc:
        raise InvalidArtifact(f"{path}: safetensors cannot read it: {first_line(exc)}") from exc


def _check_names(path: Path, samples: Mapping[str, torch.Tensor], signature: Signature) -> None:
    inputs = {spec.name for spec in signature.inputs}
    for what, names in (("no samples of input", inputs - samples.keys()), ("samples of", samples.keys() - inputs)):
        if names:
            expected = ", ".join(map(repr, sorted(inputs)))
            raise InvalidArtifact(
                f"{path}: has {what} {', '.join(map(repr, sorted(names)))}; the inputs are {expected}"
            )


def _check_tensor(path: Path, spec: TensorSpec, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
    """Hold ``tensor`` against ``spec``. ``sizes`` are those of named axes so far."""
    where = f"{path}: {spec.name!r}"
    if tensor.dtype != DTYPES[spec.datatype]:
        raise InvalidArtifact(f"{where} is {tensor.dtype}, but the input is {spec.datatype.value}")
    shape = tuple(tensor.shape[1:])
    fits = tensor.dim() == 1 + len(spec.shape) and all(
        axis.allows(size) and (axis.name is None or sizes.setdefault(axis.name, size) == size)
        for axis, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(("samples", *map(str, spec.shape)))
        raise InvalidArtifact(f"{where} is {list(tensor.shape)}, but must be [{expected}]")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise InvalidArtifact(f"{where} has values that are not finite, which no activation can be measured by")
