"""An archive on its device, ready to run."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat.errors import ExecutionFailed
from preheat_backends.torch_programs.program import Arguments, NetworkProgram
from preheat_backends.torchscript.archive import last_line
from preheat_backends.torchscript.call import Call
from preheat_backends.wording import list_names, list_shapes

# TorchScript watches the first run of a graph, and optimizes it for the second.
_COLD_RUNS = 2


class ScriptProgram(NetworkProgram):
    """An archive on one device. ``fuses``: TorchScript makes kernels for the shapes it meets, as it does on GPUs.

    Runs that TorchScript needs to watch and optimize a graph are stated as compilations, for they are slow.
    """

    def __init__(self, module: torch.jit.ScriptModule, call: Call, *, fuses: bool) -> None:
        self._module = module
        self._call = call
        self.specializes_on_shape = fuses
        self.writes_inputs = _writes(module)
        # How often each shape has run; without fusion all are one. Races cost a statement too many, no more.
        self._runs: dict[str, int] = {}

    @property
    def module(self) -> torch.nn.Module:
        """The archive's module."""
        return self._module

    def arrange(self, inputs: Mapping[str, torch.Tensor]) -> Arguments:
        """All by the names of the arguments."""
        return Arguments(keyword={self._call.arguments[name]: tensor for name, tensor in inputs.items()})

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run ``forward``; state it as long as it is not yet hot."""
        key = list_shapes(inputs) if self.specializes_on_shape else ""
        started_s = time.monotonic()
        result = self.call_eagerly(inputs)
        runs = self._runs.get(key, 0)
        if runs < _COLD_RUNS:
            self._runs[key] = runs + 1
            what = f"{list_shapes(inputs)}: run {runs + 1} of {_COLD_RUNS} that TorchScript takes to optimize"
            report_compilation(Compilation(CompilationKind.GRAPH, what, time.monotonic() - started_s))
        return result

    def call_eagerly(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Run ``forward``. Raises ExecutionFailed with the operator's own words, which TorchScript puts last."""
        try:
            return super().call_eagerly(inputs)
        except (torch.jit.Error, RuntimeError) as exc:
            raise ExecutionFailed(last_line(exc)) from exc

    def pick(self, result: object) -> Mapping[str, torch.Tensor]:
        """Put names to what ``forward`` returned: by name from a dictionary, else by place."""
        named: dict[str, Any] = dict(zip(self._call.outputs, self._choose(result), strict=True))
        for name, value in named.items():
            if not isinstance(value, torch.Tensor):
                raise ExecutionFailed(f"forward returned {type(value).__name__} for output {name!r}, not a tensor")
        return named

    def keeps(self, tensor: torch.Tensor) -> bool:  # noqa: ARG002 - the program's signature
        """Always: TorchScript folds what is constant when it likes, and an answer may lie in such memory."""
        return True

    def _choose(self, result: object) -> Sequence[object]:
        call = self._call
        if isinstance(result, Mapping):
            missing = [name for name in call.outputs if name not in result]
            if missing:
                raise ExecutionFailed(f"forward returned {list_names(result)}; output {missing[0]!r} is not among them")
            return [result[name] for name in call.outputs]
        values = (result,) if isinstance(result, torch.Tensor) else result
        if not isinstance(values, tuple | list):
            raise ExecutionFailed(f"forward returned {type(result).__name__}, not a tensor, tuple, list or dict")
        places = range(len(call.outputs)) if call.places is None else call.places
        if max(places) >= len(values) or (call.places is None and len(values) != len(call.outputs)):
            raise ExecutionFailed(f"forward returned {len(values)} values; the outputs are {list_names(call.outputs)}")
        return [values[place] for place in places]


# Calls are not followed; and what is kept as an attribute would outlive the memory that it lies in.
_MAY_WRITE = ("prim::CallMethod", "prim::CallFunction", "prim::SetAttr")
# These scale what they get by the largest value in it, whichever row that is in.
_SCALES_BY_BATCH = re.compile(
    r"quantized::.*dynamic|aten::choose_qparams|aten::fbgemm_linear_int8|aten::quantize_per_tensor_dynamic"
)


def rows_depend(module: torch.jit.ScriptModule) -> bool:
    """Whether a row's answer depends on the others in its batch, by activations that are quantized as they come."""
    return any(_SCALES_BY_BATCH.match(node.kind()) for node in _nodes(module.inlined_graph))


def _writes(module: torch.jit.ScriptModule) -> bool:
    """Whether anything in the graph writes to a tensor, or keeps it, as far as operators say."""
    return any("!" in node.schema() or node.kind() in _MAY_WRITE for node in _nodes(module.inlined_graph))


def _nodes(block: Any) -> Iterable[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
