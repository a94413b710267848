"""Making a configuration whole: what the file leaves open comes from the artifact, then from defaults.

The file wins where it speaks, but it cannot contradict the artifact: a difference is an error that names both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preheat.backend import Buckets, Dimension, Outside, PartialConfig, Signature, TensorSpec
from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.axes import axis_renames, merge_dimensions, rename_axes, tie_axes
from preheat.repository.batching_policy import BatchingPolicy
from preheat.repository.buckets import pad_values, read_buckets
from preheat.repository.configuration import ModelConfiguration
from preheat.repository.declarations import datatype_value
from preheat.scheduling.padding import PadValues
from preheat.scheduling.reshaping import Reshape
from preheat.tensors import Array

FROM_FILE = "config.pbtxt"
FROM_ARTIFACT = "the artifact"
FROM_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class CompletedConfiguration:
    """A configuration with nothing left open.

    ``signature`` is the model's, ``client_signature`` what clients see: they differ by ``reshapes``, by tensor name.
    ``buckets`` are the shapes to warm, and ``pad_values`` what inputs are padded to them with. ``origins`` says for
    each field of ``proto`` where its value came from.
    """

    configuration: ModelConfiguration
    signature: Signature
    client_signature: Signature
    reshapes: Mapping[str, Reshape]
    buckets: Buckets
    pad_values: PadValues
    proto: pb.ModelConfig
    origins: Mapping[str, str]

    def as_clients_send(self, name: str, array: Array) -> Array:
        """What is in the model's shape (with batch axis) in the one in which clients have that tensor: a view."""
        reshape = self.reshapes.get(name)
        return array if reshape is None else reshape.to_client(array, batched=self.signature.batches)


def complete(configuration: ModelConfiguration, artifact: PartialConfig) -> CompletedConfiguration:
    """Merge what the file and the artifact say. Raises InvalidConfig where they disagree or neither says enough."""
    if artifact.whole_requests:
        _refuse_shaping(configuration)
    configuration = _adopt_batching(configuration, artifact)
    row_independent = _row_independent(configuration, artifact)
    artifact_outputs = _rename_outputs(configuration, artifact)
    renames = axis_renames(configuration, (*artifact.inputs, *artifact_outputs))
    inputs = _merge(configuration, "input", configuration.inputs, rename_axes(artifact.inputs, renames))
    outputs = _merge(configuration, "output", configuration.outputs, rename_axes(artifact_outputs, renames))
    inputs, outputs = tie_axes(configuration, inputs, outputs)
    signature = Signature(inputs, outputs, configuration.max_batch_size, row_independent)
    reshapes = {
        spec.name: Reshape(_client_shape(configuration.client_shapes[spec.name], spec), spec.shape)
        for spec in (*inputs, *outputs)
        if spec.name in configuration.client_shapes
    }
    client_signature = replace(
        signature, inputs=_as_clients_see(inputs, reshapes), outputs=_as_clients_see(outputs, reshapes)
    )
    _check_axis_names(configuration, client_signature)
    _check_canary(configuration, client_signature)
    _check_samples(configuration, signature)
    proto, origins = _complete_proto(configuration, client_signature)
    return CompletedConfiguration(
        configuration,
        signature,
        client_signature,
        reshapes,
        read_buckets(configuration, signature),
        pad_values(configuration, signature),
        proto,
        origins,
    )


def _refuse_shaping(configuration: ModelConfiguration) -> None:
    """Refuse what the server does for models that take tensors, and cannot do for those that see requests whole."""
    server = configuration.server
    asked = {
        "preheat.buckets": server.buckets,
        **{f"preheat.buckets.{name}": True for name in server.size_buckets},
        **{f"preheat.pad.{name}": True for name in server.pads},
        "preheat.outside_buckets": server.outside_buckets,
        "preheat.padding_tolerance": server.padding_tolerance is not None,
        "preheat.threads": server.threads,
    }
    for key in (key for key, value in asked.items() if value):
        raise InvalidConfig(
            f"{configuration.file}: parameters: {key}: has no effect on a model that sees requests whole, as backend "
            f"'{configuration.backend}' has it do; leave it out"
        )


def _adopt_batching(configuration: ModelConfiguration, artifact: PartialConfig) -> ModelConfiguration:
    """Take what the artifact's author decided in code where the file is silent."""
    max_batch_size = configuration.max_batch_size or artifact.max_batch_size or 0
    batching = configuration.batching
    if batching is None and artifact.dynamic_batching and max_batch_size:
        batching = BatchingPolicy()
    return replace(configuration, max_batch_size=max_batch_size, batching=batching)


def _client_shape(declared: Sequence[Dimension], spec: TensorSpec) -> tuple[Dimension, ...]:
    """The declared dims of a reshaped tensor, their variable axes bounded as the model's are, in order."""
    variable = iter([axis for axis in spec.shape if axis.size is None])
    return tuple(next(variable) if axis.size is None else axis for axis in declared)


def _as_clients_see(specs: Sequence[TensorSpec], reshapes: Mapping[str, Reshape]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=reshapes[spec.name].client) if spec.name in reshapes else spec for spec in specs)


def _row_independent(configuration: ModelConfiguration, artifact: PartialConfig) -> bool:
    """Whether a row's answer depends on no other row; raises InvalidConfig if it does and batching is not accepted."""
    declared = configuration.server.row_independent
    if declared and not artifact.row_independent:
        raise InvalidConfig(
            f"{configuration.file}: parameters: preheat.row_independent: true: the artifact says that its answers "
            "depend on the rows they share a batch with; accept that with preheat.accept_row_dependence: true"
        )
    independent = artifact.row_independent and declared is not False
    accepted = configuration.server.accept_row_dependence or configuration.batching is None
    if not independent and not accepted:
        raise InvalidConfig(
            f"{configuration.file}: dynamic_batching: each answer of this model depends on the rows it shares a batch "
            "with; remove dynamic_batching, or accept that with parameter preheat.accept_row_dependence: true"
        )
    return independent


def _rename_outputs(configuration: ModelConfiguration, artifact: PartialConfig) -> Sequence[TensorSpec]:
    """The artifact's outputs; those it could only number (OUTPUT__0, ...) take the declared names in order."""
    declared = configuration.outputs
    numbered = all(spec.name == f"OUTPUT__{position}" for position, spec in enumerate(artifact.outputs))
    if not numbered or len(declared) != len(artifact.outputs):
        return artifact.outputs
    return [replace(spec, name=ours.name) for spec, ours in zip(artifact.outputs, declared, strict=True)]


def _merge(
    configuration: ModelConfiguration, kind: str, declared: Sequence[TensorSpec], artifact: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    file = configuration.file
    if not declared and not artifact:
        raise InvalidConfig(f"{file}: {kind}: not set, and the artifact does not say; declare every {kind}")
    known = {spec.name: _without_batch_axis(configuration, kind, spec) for spec in artifact}
    if not declared:
        return tuple(_name_axes(configuration, kind, spec) for spec in known.values())
    if not known:
        return tuple(declared)
    for spec in declared:
        if spec.name not in known:
            raise InvalidConfig(
                f"{file}: {kind} '{spec.name}': the artifact has no such {kind}; it has {sorted(known)}"
            )
    declared_names = {spec.name for spec in declared}
    missing = [name for name, spec in known.items() if not spec.optional and name not in declared_names]
    if missing and kind == "input":
        raise InvalidConfig(f"{file}: input: the artifact also needs {sorted(missing)}; declare them too")
    return tuple(
        _merge_spec(configuration, kind, spec, _name_axes(configuration, kind, known[spec.name])) for spec in declared
    )


def _without_batch_axis(configuration: ModelConfiguration, kind: str, spec: TensorSpec) -> TensorSpec:
    """An artifact's tensor without its batch axis, if the model is to have one; raises InvalidConfig if it cannot."""
    if configuration.max_batch_size == 0:
        return spec
    where = f"{configuration.file}: max_batch_size: {configuration.max_batch_size}"
    if not spec.shape:
        raise InvalidConfig(f"{where}: {kind} '{spec.name}' of the artifact has no dimensions; set max_batch_size: 0")
    axis = spec.shape[0]
    for rows in (1, configuration.max_batch_size):
        if not axis.allows(rows):
            raise InvalidConfig(
                f"{where}: {kind} '{spec.name}' of the artifact has {axis} as its first dimension, "
                f"which cannot be {rows}; set {_possible_batch(axis)}"
            )
    return replace(spec, shape=spec.shape[1:])


def _possible_batch(axis: Dimension) -> str:
    """A max_batch_size that would fit."""
    return f"max_batch_size: {axis.maximum}" if axis.maximum and axis.allows(1) else "max_batch_size: 0"


def _merge_spec(configuration: ModelConfiguration, kind: str, ours: TensorSpec, theirs: TensorSpec) -> TensorSpec:
    where = f"{configuration.file}: {kind} '{ours.name}'"
    if ours.datatype is not theirs.datatype:
        raise InvalidConfig(f"{where}: data_type: TYPE_{_type_name(ours)}: the artifact's is TYPE_{_type_name(theirs)}")
    if len(ours.shape) != len(theirs.shape):
        batch = " after the batch" if configuration.max_batch_size else ""
        raise InvalidConfig(
            f"{where}: dims: {len(ours.shape)} dimensions, the artifact has {len(theirs.shape)}{batch}: "
            f"[{', '.join(map(str, theirs.shape))}]"
        )
    shape = tuple(
        merge_dimensions(mine, its, f"{where}: dims[{position}]")
        for position, (mine, its) in enumerate(zip(ours.shape, theirs.shape, strict=True))
    )
    return TensorSpec(ours.name, ours.datatype, shape, ours.optional and theirs.optional)


def _name_axes(configuration: ModelConfiguration, kind: str, spec: TensorSpec) -> TensorSpec:
    """Apply the file's ``preheat.shape`` and ``preheat.dimension`` to a tensor that only the artifact declares."""
    names = configuration.server.axis_names.get(spec.name) or tuple(axis.name for axis in spec.shape)
    where = f"{configuration.file}: {kind} '{spec.name}'"
    if len(names) != len(spec.shape):
        raise InvalidConfig(f"{where}: preheat.shape names {len(names)} dimensions, the artifact has {len(spec.shape)}")
    shape = tuple(
        _bound(configuration, replace(axis, name=name or axis.name), where)
        for axis, name in zip(spec.shape, names, strict=True)
    )
    return replace(spec, shape=shape)


def _bound(configuration: ModelConfiguration, axis: Dimension, where: str) -> Dimension:
    declared = configuration.server.dimensions.get(axis.name or "")
    return axis if declared is None else merge_dimensions(declared, axis, where)


def _check_axis_names(configuration: ModelConfiguration, signature: Signature) -> None:
    """Every tensor and axis that the server's parameters name must exist: a misspelt one would silently do nothing."""
    tensors = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    axes = {axis.name for spec in (*signature.inputs, *signature.outputs) for axis in spec.shape if axis.name}
    for name in configuration.server.axis_names:
        if name not in tensors:
            raise InvalidConfig(
                f"{configuration.file}: parameters: preheat.shape.{name}: no such tensor; there are {sorted(tensors)}"
            )
    for name in configuration.server.dimensions:
        if name not in axes:
            raise InvalidConfig(
                f"{configuration.file}: parameters: preheat.dimension.{name}: no tensor has an axis of that name; "
                f"there are {sorted(axes)}"
            )


def _check_canary(configuration: ModelConfiguration, signature: Signature) -> None:
    """The outputs that a canary is to compare must exist, now rather than when a new version comes."""
    outputs = {spec.name for spec in signature.outputs}
    policy = configuration.server.canary
    if policy is not None and (unknown := sorted(set(policy.outputs) - outputs)):
        raise InvalidConfig(
            f"{configuration.file}: parameters: preheat.canary.outputs: no such outputs: {unknown}; there are "
            f"{sorted(outputs)}"
        )


def _check_samples(configuration: ModelConfiguration, signature: Signature) -> None:
    """Warm-up samples must be requests that the signature would admit."""
    for sample in configuration.samples:
        where = f"{configuration.file}: model_warmup '{sample.name}'"
        specs = {spec.name: spec for spec in signature.inputs}
        if unknown := sorted(sample.inputs.keys() - specs):
            raise InvalidConfig(f"{where}: inputs: unknown {unknown}; the model takes {sorted(specs)}")
        if missing := sorted(name for name, spec in specs.items() if not spec.optional and name not in sample.inputs):
            raise InvalidConfig(f"{where}: inputs: {missing} missing")
        sizes: dict[str, int] = {}
        for name, array in sample.inputs.items():
            _check_sample_input(specs[name], array, sizes, f"{where}: inputs '{name}'")
        _check_sample_fits(configuration, sizes, where)


def _check_sample_fits(configuration: ModelConfiguration, sizes: Mapping[str, int], where: str) -> None:
    """A sample beyond every bucket, where such are refused, would have compiled what no request can have."""
    server = configuration.server
    for name, buckets in server.size_buckets.items():
        if sizes.get(name, 0) > buckets[-1] and server.outside_buckets in (None, Outside.REFUSE):
            raise InvalidConfig(
                f"{where}: dimension '{name}' is {sizes[name]}, which is beyond every bucket: "
                f"{', '.join(map(str, buckets))}"
            )


def _check_sample_input(spec: TensorSpec, array: Array, sizes: dict[str, int], where: str) -> None:
    """Hold one input against its spec; ``sizes`` collects the sizes of named axes, which must agree."""
    if array.dtype != spec.datatype.numpy:
        raise InvalidConfig(f"{where}: data_type: must be TYPE_{_type_name(spec)}")
    fits = len(array.shape) == len(spec.shape) and all(
        axis.allows(size) and (axis.name is None or sizes.setdefault(axis.name, size) == size)
        for axis, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidConfig(f"{where}: dims: {list(array.shape)}: must be [{', '.join(map(str, spec.shape))}]")


def _complete_proto(configuration: ModelConfiguration, signature: Signature) -> tuple[pb.ModelConfig, dict[str, str]]:
    """The schema's view of the whole configuration, as the ModelConfig RPC shows it, and each field's origin."""
    proto = pb.ModelConfig()
    proto.CopyFrom(configuration.proto)
    origins = {field.name: FROM_FILE for field, _ in proto.ListFields()}
    for name, specs in (("input", signature.inputs), ("output", signature.outputs)):
        origins.setdefault(name, FROM_ARTIFACT)
        tensors = [_tensor_proto(configuration, name, spec) for spec in specs]
        proto.ClearField(name)
        getattr(proto, name).extend(tensors)
    if configuration.max_batch_size != proto.max_batch_size:
        proto.max_batch_size = configuration.max_batch_size
        origins["max_batch_size"] = FROM_ARTIFACT
    if configuration.batching is not None and not proto.HasField("dynamic_batching"):
        proto.dynamic_batching.SetInParent()
        origins["dynamic_batching"] = FROM_ARTIFACT
    if not signature.row_independent:
        proto.parameters["preheat.row_independent"].string_value = "false"
        origins.setdefault("parameters", FROM_ARTIFACT)
    proto.name = configuration.name
    proto.backend = configuration.backend
    if not proto.HasField("version_policy"):
        proto.version_policy.latest.num_versions = 1
    if not proto.instance_group:
        proto.instance_group.add(name=configuration.name, count=1, kind=pb.ModelInstanceGroup.Kind.KIND_AUTO)
    for group in proto.instance_group:
        group.count = group.count or 1
    for field, _ in proto.ListFields():
        origins.setdefault(field.name, FROM_DEFAULT)
    return proto, origins


def _tensor_proto(configuration: ModelConfiguration, field: str, spec: TensorSpec) -> pb.ModelInput | pb.ModelOutput:
    """The schema's view of a tensor, keeping what the file says of it beyond type and dims."""
    declared = next((tensor for tensor in getattr(configuration.proto, field) if tensor.name == spec.name), None)
    tensor: pb.ModelInput | pb.ModelOutput = pb.ModelInput() if field == "input" else pb.ModelOutput()
    if declared is not None:
        tensor.CopyFrom(declared)
    tensor.name = spec.name
    tensor.data_type = datatype_value(spec.datatype)
    tensor.ClearField("dims")
    tensor.dims.extend(-1 if axis.size is None else axis.size for axis in spec.shape)
    if isinstance(tensor, pb.ModelInput):
        tensor.optional = spec.optional
    return tensor


def _type_name(spec: TensorSpec) -> str:
    return pb.DataType.Name(datatype_value(spec.datatype)).removeprefix("TYPE_")
