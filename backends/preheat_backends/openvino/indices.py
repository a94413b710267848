"""Operators that read or write wherever an index says, in OpenVINO 2026.4: a client's number could end the process.

Of the operators that take indices, tried out with numbers far outside, all others answer zeros or fail the run.
"""

from pathlib import Path
from typing import Any

from preheat.errors import InvalidArtifact

_UNCHECKED = frozenset({"GatherND", "ScatterElementsUpdate"})
_INDICES = 1
# What these give lies within their input's sizes, whatever its values.
_IN_RANGE = frozenset({"Constant", "NonZero", "ShapeOf", "TopK"})


def refuse_unchecked_indices(model: Any, path: Path) -> None:
    """Raise InvalidArtifact if what clients send reaches the indices of such an operator, outside of any loop."""
    for operation in model.get_ops():
        kind = operation.get_type_name()
        if kind in _UNCHECKED and _depends_on_input(operation.input_value(_INDICES).get_node()):
            raise InvalidArtifact(
                f"{path}: {kind} {operation.get_friendly_name()!r} takes indices that depend on an input, and OpenVINO "
                "does not check them: one out of range ends the process; the backend 'onnxruntime' does check them"
            )


def rows_depend(model: Any) -> bool:
    """Whether a row's answer depends on the others in its batch: by the least of all values along the first axis.

    It is what activations are scaled by that are quantized as they come; a network has it for nothing else.
    """
    return any(
        operation.get_type_name() == "ReduceMin"
        and _first_axis_in(operation.input_value(_INDICES).get_node())
        and _depends_on_input(operation.input_value(0).get_node())
        for operation in model.get_ops()
    )


def _first_axis_in(axes: Any) -> bool:
    return axes.get_type_name() != "Constant" or 0 in axes.data.ravel().tolist()


def _depends_on_input(node: Any) -> bool:
    # By names that are theirs alone: "friendly" ones may be shared.
    waiting, seen = [node], {node.get_name()}
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Parameter":
            return True
        if node.get_type_name() in _IN_RANGE:
            continue
        for source in (value.get_node() for value in node.input_values()):
            if source.get_name() not in seen:
                seen.add(source.get_name())
                waiting.append(source)
    return False
