"""From a version's folder to models that OpenVINO has compiled for this CPU."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preheat.backend import ModelSource
from preheat.errors import InvalidArtifact
from preheat_backends.artifacts import Artifact, Kind
from preheat_backends.openvino.ir import check_ir
from preheat_backends.openvino.library import CPU, get_core, reason_of
from preheat_backends.openvino.options import Parameters, make_settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles ``model``, read from ``path``, with ``settings``, in tenths of a second.

    Each instance has one made for it. OpenVINO could run them all on one compiled model, in streams; but it takes any
    stream for a run, also one that has not been warmed, and a run that fails leaves its stream with shapes of that run.
    The weights are in memory once, but for those that OpenVINO lays out anew for its kernels: these are each one's own.
    """

    model: Any
    path: Path
    settings: Mapping[str, object]

    def compile(self) -> Any:
        """Compile it anew. Any thread. Raises InvalidArtifact."""
        try:
            return get_core().compile_model(self.model, CPU, self.settings)
        except Exception as exc:
            raise _refuse(self.path, exc) from exc


def read_model(artifact: Artifact, *, with_weights: bool = True) -> Any:
    """The model as OpenVINO reads it, with its weights in memory: a mapped file that is cut short ends the process.

    Without weights they are mapped, and not for use. Raises InvalidArtifact.
    """
    if artifact.kind is Kind.OPENVINO_IR:
        check_ir(artifact.path)
    try:
        return get_core().read_model(artifact.path, config={"ENABLE_MMAP": not with_weights})
    except Exception as exc:
        raise _refuse(artifact.path, exc) from exc


def make_compiler(model: Any, artifact: Artifact, source: ModelSource, parameters: Parameters) -> Compiler:
    """What compiles ``model`` for the instances of ``source``."""
    return Compiler(model, artifact.path, make_settings(source, parameters))


def check_compiled(compiled: Any, source: ModelSource, parameters: Parameters) -> None:
    """Hold what OpenVINO made against what it was asked for: it does not say if it does otherwise.

    Raises InvalidConfig for another precision; says in the log if there are fewer threads.
    """
    asked = parameters.inference_precision
    got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if got != asked.hint:
        raise source.refuse("inference_precision", asked.value, f"OpenVINO computes in {got} on this CPU instead")
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if threads < source.threads:
        _log.info("%s: OpenVINO uses %d threads, not %d: one for each core", source.name, threads, source.threads)


def _refuse(path: Path, error: Exception) -> InvalidArtifact:
    return InvalidArtifact(f"{path}: openvino cannot load it: {reason_of(error)}")
