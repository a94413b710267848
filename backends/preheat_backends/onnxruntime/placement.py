"""Where ONNX Runtime put a graph's nodes: what was asked to run on a GPU runs there, or its load fails."""

import logging
from collections import Counter
from typing import Any

from preheat.backend import ModelSource
from preheat.errors import BackendMissing, InvalidConfig
from preheat_backends.onnxruntime.library import ort
from preheat_backends.onnxruntime.options import ExecutionProvider, Parameters
from preheat_backends.onnxruntime.providers import NAMES

_log = logging.getLogger(__name__)

# The session configuration's entry that makes it remember who got which node.
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
# What shapes are computed with. ONNX Runtime puts such nodes on the CPU on purpose, where shapes are.
_SHAPE_ARITHMETIC = frozenset({
    "Shape", "Size", "Constant", "ConstantOfShape", "Range", "Identity", "Cast", "Where",
    "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Expand",
    "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "ReduceProd",
    "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or",
})  # fmt: skip


def check_started(session: Any, source: ModelSource, parameters: Parameters) -> None:
    """Raise BackendMissing unless ``session`` has the provider that was asked for."""
    provider = NAMES[parameters.provider(source)]
    if session.get_providers()[0] != provider:
        raise BackendMissing(
            f"{source.name} asks for {source.device}, but onnxruntime could not start its {provider}: its log says "
            "why, which is most often a CUDA, cuDNN or TensorRT library that is missing or of another version"
        )


def check_placement(session: Any, source: ModelSource, parameters: Parameters) -> None:
    """Raise InvalidConfig if nodes that compute more than shapes are on the CPU, unless the configuration allows it.

    The log tells what each provider got.
    """
    provider = parameters.provider(source)
    placed = _nodes_by_provider(session)
    _log.info("%s: onnxruntime placed nodes: %s", source.name, _describe(placed))
    on_cpu = placed.get(NAMES[ExecutionProvider.CPU], Counter())
    strangers = Counter({kind: count for kind, count in on_cpu.items() if kind not in _SHAPE_ARITHMETIC})
    if strangers and not parameters.allow_cpu_nodes:
        raise InvalidConfig(
            f"{source.config_path}: parameters: execution_provider: {provider.value!r}: onnxruntime has no kernel on "
            f"{source.device} for {_list(strangers)}, and would run them on the CPU, with a copy before and after: "
            "set allow_cpu_nodes: true to have it so"
        )
    if placed and NAMES[provider] not in placed:
        raise InvalidConfig(
            f"{source.config_path}: parameters: execution_provider: {provider.value!r}: it took none of the graph's "
            f"nodes; those are: {_describe(placed)}"
        )


def can_tell() -> bool:
    """Whether this ONNX Runtime tells where nodes are: releases before 1.24 do not."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def _nodes_by_provider(session: Any) -> dict[str, Counter[str]]:
    placed: dict[str, Counter[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        kinds = (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in subgraph.get_nodes())
        placed.setdefault(subgraph.ep_name, Counter()).update(kinds)
    return placed


def _describe(placed: dict[str, Counter[str]]) -> str:
    return ", ".join(f"{kinds.total()} on {name}" for name, kinds in placed.items()) or "none"


def _list(kinds: Counter[str], *, limit: int = 5) -> str:
    names = [f"{count} {kind}" for kind, count in kinds.most_common(limit)]
    more = f" and {len(kinds) - limit} kinds more" if len(kinds) > limit else ""
    return ", ".join(names) + more
