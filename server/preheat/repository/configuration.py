"""A model's configuration: config.pbtxt in Triton's ModelConfig schema, parsed and validated once, then trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format

from preheat.backend import Dimension, TensorSpec
from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.batching_policy import BatchingPolicy, read_batching
from preheat.repository.declarations import read_declarations
from preheat.repository.fields import refuse_unsupported
from preheat.repository.names import is_model_name
from preheat.repository.server_parameters import ServerParameters, parse_server_parameters
from preheat.repository.warmup_samples import read_warmup_samples
from preheat.scheduling.warmup import Sample

CONFIG_FILE = "config.pbtxt"
# Triton's other names for what we have.
BACKEND_ALIASES = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch": "torchscript",
    "pytorch_libtorch": "torchscript",
}
# Which backend a bare artifact is for, by Triton's default names.
BACKEND_OF_ARTIFACT = {
    "model.onnx": "onnxruntime",
    "model.pt2": "eager",
    "model.pt": "torchscript",
    "model.xml": "openvino",
}


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """``count`` instances on each device of ``gpus``, or on the device that ``kind`` says."""

    kind: str
    count: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfiguration:
    """What a model's configuration asks for. ``inputs`` and ``outputs`` are empty where it leaves them to the artifact.

    Shapes are the model's; ``client_shapes`` has the dims of the tensors that clients see in another shape
    (``reshape``). Shapes leave out the batch axis when ``max_batch_size`` is at least 1. ``proto`` is the file as
    parsed; ``file`` names it in errors and need not exist.
    """

    name: str
    file: Path
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: BatchingPolicy | None
    instance_groups: tuple[InstanceGroup, ...]
    server: ServerParameters
    backend_parameters: Mapping[str, str]
    samples: tuple[Sample, ...]
    artifact_name: str | None
    client_shapes: Mapping[str, tuple[Dimension, ...]]
    proto: pb.ModelConfig = field(compare=False)


def read_configuration(folder: Path) -> ModelConfiguration:
    """Read the configuration of the model in ``folder``; a missing file leaves everything to artifact and defaults.

    Raises InvalidConfig naming file, key, value and what is allowed.
    """
    file = folder / CONFIG_FILE
    text = file.read_text(encoding="utf-8", errors="strict") if file.is_file() else ""
    return parse_configuration(text, folder)


def parse_configuration(text: str, folder: Path) -> ModelConfiguration:
    """Parse ``text``, the configuration of the model in ``folder``. Raises InvalidConfig."""
    file = folder / CONFIG_FILE
    try:
        proto = text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as exc:
        raise InvalidConfig(f"{file}:{exc}") from exc
    refuse_unsupported(proto, file)
    _check_name(proto, folder)
    parameters = {key: value.string_value for key, value in proto.parameters.items()}
    server, backend_parameters = parse_server_parameters(parameters, file)
    inputs = read_declarations(list(proto.input), "input", file, server)
    outputs = read_declarations(list(proto.output), "output", file, server)
    if proto.max_batch_size < 0:
        raise InvalidConfig(f"{file}: max_batch_size: {proto.max_batch_size}: must be 0 (no batch axis) or at least 1")
    return ModelConfiguration(
        name=folder.name,
        file=file,
        backend=_backend(proto, folder),
        max_batch_size=proto.max_batch_size,
        inputs=tuple(each.spec for each in inputs),
        outputs=tuple(each.spec for each in outputs),
        batching=read_batching(proto, file),
        instance_groups=_instance_groups(proto, file),
        server=server,
        backend_parameters=backend_parameters,
        samples=read_warmup_samples(proto, folder, file),
        artifact_name=proto.default_model_filename or None,
        client_shapes={
            each.spec.name: each.client_shape for each in (*inputs, *outputs) if each.client_shape is not None
        },
        proto=proto,
    )


def _check_name(proto: pb.ModelConfig, folder: Path) -> None:
    if not is_model_name(folder.name):
        raise InvalidConfig(f"{folder}: a model's folder may only have letters, digits, '_', '-' and '.' in its name")
    if proto.name and proto.name != folder.name:
        raise InvalidConfig(f"{folder / CONFIG_FILE}: name: {proto.name!r}: must be the folder's name, {folder.name!r}")


def _backend(proto: pb.ModelConfig, folder: Path) -> str:
    """The backend's name in our vocabulary."""
    asked = proto.backend or proto.platform
    if asked:
        return BACKEND_ALIASES.get(asked, asked)
    names = [proto.default_model_filename] if proto.default_model_filename else list(BACKEND_OF_ARTIFACT)
    for version in sorted(folder.iterdir()):
        for name in names:
            if name in BACKEND_OF_ARTIFACT and version.name.isdecimal() and (version / name).exists():
                return BACKEND_OF_ARTIFACT[name]
    raise InvalidConfig(
        f"{folder / CONFIG_FILE}: backend: not set, and no version folder has one of {', '.join(BACKEND_OF_ARTIFACT)} "
        "to tell it by"
    )


def _instance_groups(proto: pb.ModelConfig, file: Path) -> tuple[InstanceGroup, ...]:
    groups: list[InstanceGroup] = []
    for group in proto.instance_group:
        if group.count < 0:
            raise InvalidConfig(f"{file}: instance_group: count: {group.count}: must be at least 1")
        if group.kind not in pb.ModelInstanceGroup.Kind.values():
            allowed = ", ".join(pb.ModelInstanceGroup.Kind.keys())
            raise InvalidConfig(f"{file}: instance_group: kind: {group.kind}: must be one of {allowed}")
        kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
        if group.gpus and kind == "KIND_CPU":
            raise InvalidConfig(f"{file}: instance_group: gpus: a group of KIND_CPU has none")
        groups.append(InstanceGroup(kind, group.count or 1, tuple(group.gpus)))
    return tuple(groups) or (InstanceGroup("KIND_AUTO", 1),)
