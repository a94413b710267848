"""How a package is called: which input goes where, and which of its tensors is which output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from preheat.backend import Dimension, ModelSource, Signature, TensorSpec
from preheat.errors import InvalidArtifact, InvalidConfig
from preheat_backends.aot_inductor.description import Description
from preheat_backends.aot_inductor.generated import CheckedInput, call_spec, checked_inputs, tensor_counts
from preheat_backends.aot_inductor.package import Package
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor
from preheat_backends.torch_programs.exported_program import output_keys


@dataclass(frozen=True, slots=True)
class Calling:
    """``inputs`` are names in the order of the call, ``outputs`` for each name the place of its tensor in the answer.

    ``writes_inputs``: the network may write to tensors that it is given.
    """

    inputs: tuple[str, ...]
    outputs: Mapping[str, int]
    writes_inputs: bool = True


def own_calling(source: ModelSource, description: Description, signature: Signature) -> Calling:
    """How a package of our tool is called to serve ``signature``. Raises InvalidConfig if it cannot."""
    actual = description.signature
    actual.check_inputs(source, signature)
    indices = actual.match_outputs(source, signature, by_position=False)
    return Calling(
        tuple(tensor.name for tensor in actual.inputs),
        {spec.name: index for spec, index in zip(signature.outputs, indices, strict=True)},
        writes_inputs=description.writes_inputs,
    )


def foreign_calling(source: ModelSource, package: Package, signature: Signature) -> Calling:
    """How a package is called that does not name its tensors.

    Inputs that its call has by name take that name; the others, in order, the declared inputs that are left. Outputs
    are as those of an exported program. Raises InvalidConfig where the declared tensors are others than the package
    has, as far as that is known; InvalidArtifact for a call that is more than tensors.
    """
    spec = call_spec(package.wrapper)
    if spec is None:
        raise InvalidArtifact(
            f"{package.path} does not say how it is called: its source wrapper.cpp is not in it, or of an unknown "
            "form; build it by python -m preheat_backends.aot_inductor.build"
        )
    positional, keywords = _read_inputs(spec.inputs, package)
    names = _name_inputs(source, signature, positional, keywords)
    _check_inputs(source, package, signature, names)
    return Calling(names, _place_outputs(source, signature, _read_outputs(spec.outputs, package)))


def _read_inputs(spec: str, package: Package) -> tuple[int, tuple[str, ...]]:
    """How many inputs are given by position, and the names of the others, in the order of the call."""
    tree = pytree.treespec_loads(spec)
    arguments, keywords = pytree.tree_unflatten(range(tree.num_leaves), tree)
    counts = tensor_counts(package.wrapper)
    plain = all(isinstance(leaf, int) for leaf in (*arguments, *keywords.values()))
    if not plain or (counts is not None and counts[0] != tree.num_leaves):
        raise InvalidArtifact(f"{package.path} takes nested inputs, or such as are no tensors; each must be one tensor")
    return len(arguments), tuple(keywords)


def _name_inputs(
    source: ModelSource, signature: Signature, positional: int, keywords: tuple[str, ...]
) -> tuple[str, ...]:
    declared = [spec.name for spec in signature.inputs]
    missing = [name for name in keywords if name not in declared]
    others = [name for name in declared if name not in keywords]
    if missing or len(others) != positional:
        takes = ", ".join([*(f"{positional} by position" for _ in range(positional > 0)), *map(repr, keywords)])
        raise InvalidConfig(
            f"{source.config_path}: input: {', '.join(map(repr, declared)) or 'none'} are declared; the package in "
            f"{source.version_path} takes {positional + len(keywords)} inputs ({takes or 'none'}); declare those"
        )
    return (*others, *keywords)


def _check_inputs(source: ModelSource, package: Package, signature: Signature, names: Sequence[str]) -> None:
    """Hold the declared inputs against the checks that the package's source has of them."""
    declared = {spec.name: spec for spec in signature.inputs}
    checks = checked_inputs(package.wrapper) or (CheckedInput(None, None),) * len(names)
    tensors = [_as_tensor(declared[name], check) for name, check in zip(names, checks, strict=False)]
    ArtifactSignature(tuple(tensors), ()).check_inputs(source, signature)
    for spec, tensor in zip((declared[name] for name in names), tensors, strict=True):
        _check_bounds(source, signature, spec, tensor)
    specs = [declared[name] for name in names]
    _refuse_unknown_ties(package, signature, specs, tensors)
    _check_ties(source, signature, specs, tensors)


def _as_tensor(spec: TensorSpec, check: CheckedInput) -> ArtifactTensor:
    """An input as its check has it; what the check does not say is as declared."""
    return ArtifactTensor(spec.name, check.datatype or spec.datatype, check.shape)


def _check_bounds(source: ModelSource, signature: Signature, spec: TensorSpec, tensor: ArtifactTensor) -> None:
    """Refuse sizes that are declared and that the package's own check would turn away, request by request."""
    lead = (Dimension(minimum=1, maximum=signature.max_batch_size),) if signature.batches else ()
    for ours, theirs in zip((*lead, *spec.shape), tensor.shape or (), strict=False):
        beyond = theirs.maximum is not None and (ours.maximum is None or ours.maximum > theirs.maximum)
        if ours.size is None and (ours.minimum < theirs.minimum or beyond):
            raise InvalidConfig(
                f"{source.config_path}: input {spec.name!r}: {ours}: the package in {source.version_path} takes "
                f"{theirs}; narrow it by parameter preheat.dimension.NAME, or build the package for these sizes"
            )


def _refuse_unknown_ties(
    package: Package, signature: Signature, specs: Sequence[TensorSpec], tensors: Sequence[ArtifactTensor]
) -> None:
    """Refuse a package that does not say which of its sizes must be equal: where they are not, it reads on."""
    lead = (Dimension(minimum=1, maximum=signature.max_batch_size),) if signature.batches else ()
    varying = [
        theirs
        for spec, tensor in zip(specs, tensors, strict=True)
        for ours, theirs in zip((*lead, *spec.shape), tensor.shape or (Dimension(),) * 64, strict=False)
        if ours.size is None or ours.size != theirs.size
    ]
    batch = {tensor.shape[0].name for tensor in tensors if tensor.shape} if lead else set()
    inner = [theirs for tensor in tensors for theirs in (tensor.shape or ())[len(lead) :]]
    told = all(theirs.name is not None or theirs.size is not None for theirs in varying)
    if (len(varying) > 1 and not told) or any(theirs.name in batch - {None} for theirs in inner):
        raise InvalidArtifact(
            f"{package.path} does not say which of its sizes must be equal (inductor was told size_asserts: False, or "
            "a size depends on another), and would read beyond its inputs where they are not; build it with "
            "size_asserts, or by python -m preheat_backends.aot_inductor.build"
        )


def _check_ties(
    source: ModelSource, signature: Signature, specs: Sequence[TensorSpec], tensors: Sequence[ArtifactTensor]
) -> None:
    """Refuse axes that the package has as equal, and the configuration has not: requests are held against that."""
    lead = int(signature.batches)
    tied: dict[str, tuple[TensorSpec, Dimension]] = {}
    for spec, tensor in zip(specs, tensors, strict=True):
        for ours, theirs in zip(spec.shape, (tensor.shape or ())[lead:], strict=False):
            if theirs.name is None:
                continue
            first_spec, first = tied.setdefault(theirs.name, (spec, ours))
            if not _equal(first, ours):
                raise InvalidConfig(
                    f"{source.config_path}: input {spec.name!r}: {ours}: the package in {source.version_path} takes it "
                    f"for as large as {first} of {first_spec.name!r}, and reads beyond it where it is not; give both "
                    f"axes one name, by preheat.shape.{first_spec.name} and preheat.shape.{spec.name}"
                )


def _equal(one: Dimension, other: Dimension) -> bool:
    """Whether two axes always have the same size. One axis is not told from another just like it without a name."""
    if one is other or (one.size is not None and one.size == other.size):
        return True
    return one.name is not None and one.name == other.name


def _read_outputs(spec: str, package: Package) -> tuple[str, ...]:
    """The outputs' own names, or for want of such OUTPUT__0 and on, in the order of the answer."""
    tree = pytree.treespec_loads(spec)
    results: Any = pytree.tree_unflatten(range(tree.num_leaves), tree)
    counts = tensor_counts(package.wrapper)
    if counts is not None and counts[1] != tree.num_leaves:
        raise InvalidArtifact(f"{package.path} returns something that is no tensor; it must return tensors only")
    keys = output_keys(results, str(package.path)) or (0,)
    return tuple(key if isinstance(key, str) else f"OUTPUT__{key}" for key in keys)


def _place_outputs(source: ModelSource, signature: Signature, names: tuple[str, ...]) -> Mapping[str, int]:
    declared = [spec.name for spec in signature.outputs]
    unknown = [name for name in declared if name not in names]
    if not unknown:
        return {name: names.index(name) for name in declared}
    if len(declared) != len(names) or not names[0].startswith("OUTPUT__"):
        raise InvalidConfig(
            f"{source.config_path}: output {unknown[0]!r}: no such output; the package in {source.version_path} has "
            f"{len(names)}: {', '.join(map(repr, names))}"
        )
    return {name: index for index, name in enumerate(declared)}
