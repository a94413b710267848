"""The plugin: a package, held against this machine and against what it is to serve, and only then loaded."""

import logging
import os
from dataclasses import dataclass

import torch

from preheat.backend import ModelSource, PartialConfig, Signature
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat_backends.aot_inductor.calling import Calling, foreign_calling, own_calling
from preheat_backends.aot_inductor.compatibility import check_compatible
from preheat_backends.aot_inductor.description import Description, read_description
from preheat_backends.aot_inductor.generated import ends_process, fixed_threads, most_threads
from preheat_backends.aot_inductor.package import Package, read_package
from preheat_backends.aot_inductor.program import PackageProgram
from preheat_backends.aot_inductor.running import LibraryRunner, LoaderRunner, Runner
from preheat_backends.artifacts import Artifact, Kind, Takes, check_archive
from preheat_backends.torch_programs.backend import TorchBackend
from preheat_backends.torch_programs.program import Program, first_line

log = logging.getLogger(__name__)

# A package looks for it once, when its library is first called, and keeps what it found in that library: so it has to
# be set before, and changes nothing afterwards. Each load unpacks a library of its own, and so looks again. Who sets
# it to 0 for the process has measured what the checks cost, and is told of it at every load.
CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"
os.environ.setdefault(CHECK_INPUTS, "1")


@dataclass(frozen=True, slots=True)
class Parameters:
    """``model_name``: which network, of a package that has several.

    ``run_single_threaded``: call it without the locks that several instances need. ``accept_aborts``: serve it although
    its kernels end the process when they meet an index out of range.
    """

    model_name: str = "model"
    run_single_threaded: bool = False
    accept_aborts: bool = False


class AotInductorBackend(TorchBackend):
    """Runs packages."""

    takes = Takes(
        backend="aot_inductor",
        names=("model.pt2",),
        kinds=frozenset({Kind.AOTINDUCTOR_PACKAGE}),
        description="an AOTInductor package (.pt2), which python -m preheat_backends.aot_inductor.build makes of a "
        "model for the backend 'eager'",
    )
    # Each instance has a copy of the package's state, made when it is loaded; kernels may have a number in them.
    any_threads = any_instances = False

    def check(self, source: ModelSource) -> None:
        """Refuse unknown parameters, and calls without locks by several instances."""
        _parse(source)

    def complete(self, source: ModelSource) -> PartialConfig:
        """The whole signature of a package of our build tool; nothing of others, which do not name their tensors."""
        parameters = _parse(source)
        package = read_package(source, self._find(source).path, parameters.model_name)
        description = read_description(package.metadata, package.path)
        if description is None:
            return PartialConfig()
        told = description.signature.partial_config()
        return PartialConfig(told.inputs, told.outputs, row_independent=description.row_independent)

    def build(self, artifact: Artifact, source: ModelSource, *, signature: Signature, device: torch.device) -> Program:
        """Check all that can be known of the package, then load its library, once for all instances."""
        parameters = _parse(source)
        check_archive(artifact.path)
        package = read_package(source, artifact.path, parameters.model_name)
        description = read_description(package.metadata, package.path)
        check_compatible(source, package, description)
        _check_kernels(source, package, parameters)
        calling = self.match_call(source, package, description, signature)
        return PackageProgram(
            _load(source, package, parameters, device),
            inputs=calling.inputs, outputs=calling.outputs, writes_inputs=calling.writes_inputs,
        )  # fmt: skip

    def match_call(
        self, source: ModelSource, package: Package, description: Description | None, signature: Signature
    ) -> Calling:
        """How ``package`` is called to serve ``signature``. Raises InvalidConfig, InvalidArtifact if it cannot be."""
        if description is not None:
            return own_calling(source, description, signature)
        return foreign_calling(source, package, signature)


def _parse(source: ModelSource) -> Parameters:
    parameters = source.parse_parameters(Parameters)
    if parameters.run_single_threaded and source.instances > 1:
        raise source.refuse(
            "run_single_threaded", "true", f"the model has {source.instances} instances, which call it at once; set "
            "instance_group { count: 1 } or leave it out"
        )  # fmt: skip
    return parameters


def _check_kernels(source: ModelSource, package: Package, parameters: Parameters) -> None:
    """Refuse kernels for the CPU that can end the process, or that would write beyond their memory."""
    if ends_process(package.kernels) and not parameters.accept_aborts:
        raise InvalidArtifact(
            f"{package.path} has kernels that end the whole process when they meet an index out of range, such as a "
            "token that is not in the vocabulary: they check it on several threads. Build it by python -m "
            "preheat_backends.aot_inductor.build, or with inductor_configs={'cpp.threads': 1}; or accept it by "
            "parameter accept_aborts: true"
        )
    most = most_threads(package.kernels)
    if most is not None and source.threads > most:
        raise InvalidConfig(
            f"{source.config_path}: parameters: preheat.threads: {source.threads}: {package.path} has kernels with "
            f"room for {most} threads, and more would write beyond it; set preheat.threads: {most}, or build it with "
            "inductor_configs={'cpp.dynamic_threads': True}"
        )
    fixed = fixed_threads(package.kernels)
    if fixed is not None and fixed != source.threads:
        log.warning(
            "%s: kernels in %s run on %d threads, whatever is asked for; the model was given %d",
            source.name, package.path, fixed, source.threads,
        )  # fmt: skip


def _load(source: ModelSource, package: Package, parameters: Parameters, device: torch.device) -> Runner:
    """Load the package's code. Raises InvalidArtifact with the loader's reason."""
    if os.environ[CHECK_INPUTS].startswith("0"):
        log.warning("%s: %s switches the package's own checks of its inputs off", source.name, CHECK_INPUTS)
    single_threaded, runners = parameters.run_single_threaded, source.instances
    try:
        # What else there may be beside the library, such as operators to look up by name, is for torch to load.
        if device.type == "cpu" and len(package.libraries) == 1 and not package.others:
            return LibraryRunner(package.path, package.libraries[0], single_threaded=single_threaded, runners=runners)
        index = device.index if device.type == "cuda" else -1
        return LoaderRunner(
            package.path, parameters.model_name, single_threaded=single_threaded, runners=runners, device_index=index
        )
    except Exception as exc:
        raise InvalidArtifact(f"{package.path}: torch cannot load it: {first_line(exc)}") from exc
