"""CUDA graphs, which torch records by thread: what is compiled for one instance has to be recorded by each.

A thread's first run of a graph warms torch's memory pool up, its second records, and from the third on it is replayed
(torch/_inductor/cudagraph_trees.py). **Not run on a GPU yet.**
"""

import threading
import time
from collections.abc import Mapping

import torch

from preheat.backend import ModelSource
from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat_backends.torch_compile.variants import Variants
from preheat_backends.torch_programs.program import NetworkProgram, Wrapped

_RUNS_UNTIL_RECORDED = 2
# Before, threads other than the first to record fail with an assertion (pytorch#123177).
_FIRST_BY_THREAD = (2, 13)


class RecordedProgram(Wrapped):
    """A compiled program whose graphs each thread records: that is stated, so that each is warm only when it has."""

    def __init__(self, inner: NetworkProgram, variants: Variants) -> None:
        super().__init__(inner)
        self._variants = variants
        self._seen = threading.local()

    def call(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """As the other, and state the recording where it is one."""
        variant = self._variants.of(inputs)
        runs: dict[object, int] = self._seen.__dict__.setdefault("runs", {})
        number = runs.get(variant, 0)
        if number >= _RUNS_UNTIL_RECORDED:
            return super().call(inputs)
        began_s = time.monotonic()
        result = super().call(inputs)
        runs[variant] = number + 1
        seconds = time.monotonic() - began_s
        report_compilation(Compilation(CompilationKind.CUDA_GRAPH, self._variants.describe(inputs), seconds))
        return result


def refuse_one_thread_only(source: ModelSource, name: str, value: object) -> None:
    """Raise InvalidConfig for CUDA graphs where torch can record them on the first thread of the process only.

    With one instance too: another model, or the same when it is loaded again, has a thread of its own.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _FIRST_BY_THREAD:
        raise source.refuse(
            name,
            value,
            f"torch {torch.__version__} records CUDA graphs on the first thread of a process only, and each instance "
            "has a thread of its own; install torch 2.13, or choose max-autotune-no-cudagraphs",
        )
