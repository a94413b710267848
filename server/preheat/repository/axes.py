"""Named axes: names tie axes together, across tensors and between artifact and configuration.

An engine reads out of bounds when tied axes differ, so a configuration may rename a tie or narrow it, but never
loosen it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from preheat.backend import Dimension, TensorSpec
from preheat.errors import InvalidConfig
from preheat.repository.configuration import ModelConfiguration


def axis_renames(configuration: ModelConfiguration, artifact: Sequence[TensorSpec]) -> Mapping[str, str]:
    """The file's names for the axes that the artifact names: who renames one axis renames all that are tied to it.

    Raises InvalidConfig for two names for one tie. Shapes of ``artifact`` are whole.
    """
    lead = int(configuration.max_batch_size > 0)
    renames: dict[str, str] = {}
    for spec in artifact:
        names = configuration.server.axis_names.get(spec.name, ())
        for axis, name in zip(spec.shape[lead:], names, strict=False):
            if axis.name is None or name is None:
                continue
            if renames.setdefault(axis.name, name) != name:
                raise InvalidConfig(
                    f"{configuration.file}: parameters: preheat.shape.{spec.name}: '{name}': the artifact ties this "
                    f"axis to others, as '{axis.name}', and another preheat.shape calls those "
                    f"'{renames[axis.name]}'; use one name"
                )
    return renames


def rename_axes(specs: Sequence[TensorSpec], renames: Mapping[str, str]) -> list[TensorSpec]:
    """``specs`` with the names of their axes replaced."""
    return [
        replace(spec, shape=tuple(replace(axis, name=renames.get(axis.name or "", axis.name)) for axis in spec.shape))
        for spec in specs
    ]


def merge_dimensions(ours: Dimension, theirs: Dimension, where: str) -> Dimension:
    """What the file's axis and the artifact's both allow, under the file's name if it has one. Raises InvalidConfig."""
    maxima = [bound for bound in (ours.maximum, theirs.maximum) if bound is not None]
    step = math.lcm(ours.multiple_of, theirs.multiple_of)
    merged = Dimension(ours.name or theirs.name, max(ours.minimum, theirs.minimum), min(maxima, default=None), step)
    if not merged.allows(-(-merged.minimum // step) * step):
        raise InvalidConfig(f"{where}: {ours}: the artifact has {theirs}")
    return merged


def tie_axes(
    configuration: ModelConfiguration, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Give all axes of one name the bounds that all of them allow. Raises InvalidConfig if no size is left."""
    ties: dict[str, Dimension] = {}
    for spec in (*inputs, *outputs):
        for axis in spec.shape:
            if axis.name is not None:
                where = f"{configuration.file}: dimension '{axis.name}' of '{spec.name}'"
                ties[axis.name] = _meet(ties.get(axis.name, axis), axis, where)

    def tied(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(ties.get(axis.name or "", axis) for axis in spec.shape))

    return tuple(map(tied, inputs)), tuple(map(tied, outputs))


def _meet(first: Dimension, second: Dimension, where: str) -> Dimension:
    try:
        return merge_dimensions(first, second, where)
    except InvalidConfig:
        raise InvalidConfig(f"{where}: {second} here, but {first} in other tensors; they must agree") from None
