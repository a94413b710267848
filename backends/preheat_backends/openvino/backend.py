"""The plugin: ONNX models and OpenVINO IR, compiled for the CPU."""

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

from preheat.backend import Backend, Hardware, Model, ModelSource, PartialConfig, Signature
from preheat.errors import BackendMissing, InvalidArtifact, InvalidConfig
from preheat.tensors import DataType
from preheat_backends import onnx_signature
from preheat_backends.artifacts import Artifact, Kind, Takes, find_artifact
from preheat_backends.hardware import find_device
from preheat_backends.onnx_signature import read_signature
from preheat_backends.openvino.compiled import check_compiled, make_compiler, read_model
from preheat_backends.openvino.indices import refuse_unchecked_indices, rows_depend
from preheat_backends.openvino.library import describe_version
from preheat_backends.openvino.options import Parameters, parse
from preheat_backends.openvino.session import OpenVinoModel, Ports
from preheat_backends.openvino.signature import find_ports, names_outputs, read_ports
from preheat_backends.signatures import ArtifactSignature

_log = logging.getLogger(__name__)
_TAKES = Takes(
    backend="openvino",
    names=("model.xml", "model.onnx"),
    kinds=frozenset({Kind.OPENVINO_IR, Kind.ONNX}),
    description="an OpenVINO IR model (.xml with .bin) or an ONNX model (.onnx)",
)
# What a CPU multiplies 8-bit integers with and loses nothing.
_ADDS_IN_32_BITS = ("amx_int8", "avx512_vnni", "avx_vnni")


class OpenVinoBackend(Backend):
    """Runs models on the CPU. OpenVINO's devices of other kinds are not used."""

    def hardware(self) -> Hardware:
        """OpenVINO, on the host."""
        return Hardware(library=f"openvino {describe_version()}", devices=("cpu",))

    def complete(self, source: ModelSource) -> PartialConfig:
        """The model's inputs and outputs, as far as the artifact gives their shapes."""
        _parse(source)
        artifact = _find(source)
        model = read_model(artifact, with_weights=False) if artifact.kind is Kind.OPENVINO_IR else None
        told = _refuse_texts(_read_signature(artifact, model), source).partial_config()
        dependent = onnx_signature.rows_depend(artifact.path) if model is None else rows_depend(model)
        return dataclasses.replace(told, row_independent=not dependent)

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Compile the model for its first instance; the others are compiled when they are opened."""
        parameters = _parse(source)
        artifact = _find(source)
        model = read_model(artifact)
        ports = _match(model, artifact, source, signature)
        refuse_unchecked_indices(model, artifact.path)
        _refuse_state(model, artifact)
        compiler = make_compiler(model, artifact, source, parameters)
        compiled = compiler.compile()
        check_compiled(compiled, source, parameters)
        _tell_limits(model, source, signature)
        varies = any(port.partial_shape.is_dynamic for port in model.inputs)
        return OpenVinoModel(compiler, compiled, ports, threads=source.threads, varies=varies)


def _parse(source: ModelSource) -> Parameters:
    if source.device != "cpu":
        raise BackendMissing(f"{source.name} asks for {source.device}, but the backend 'openvino' runs on the CPU only")
    return parse(source)


def _find(source: ModelSource) -> Artifact:
    artifact = find_artifact(source, _TAKES)
    # OpenVINO tells the two apart by their names.
    if (artifact.kind is Kind.OPENVINO_IR) != (artifact.path.suffix == ".xml"):
        raise _TAKES.refuse(artifact.path, artifact.kind)
    return artifact


def _read_signature(artifact: Artifact, model: Any, declared: Collection[str] = ()) -> ArtifactSignature:
    """What the artifact takes and gives: of ONNX with the symbols that tie axes together, which OpenVINO drops."""
    if artifact.kind is Kind.ONNX:
        return read_signature(artifact.path)
    return read_ports(model, artifact.path, declared=declared)


def _match(model: Any, artifact: Artifact, source: ModelSource, signature: Signature) -> Ports:
    """Where in ``model`` the tensors of ``signature`` are. Raises InvalidConfig for what is not as declared."""
    declared = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    actual = _refuse_texts(_read_signature(artifact, model, declared), source)
    actual.check_inputs(source, signature)
    indices = actual.match_outputs(source, signature, by_position=not names_outputs(model))
    inputs = tuple(spec.name for spec in signature.inputs)
    found = tuple(actual.outputs[index].name for index in indices)
    return Ports(
        signature,
        dict(zip(inputs, find_ports(model.inputs, inputs, "INPUT__"), strict=True)),
        dict(
            zip(
                (spec.name for spec in signature.outputs),
                find_ports(model.outputs, found, "OUTPUT__"),
                strict=True,
            )
        ),
    )


def _refuse_texts(actual: ArtifactSignature, source: ModelSource) -> ArtifactSignature:
    for tensor in (*actual.inputs, *actual.outputs):
        if tensor.datatype is DataType.BYTES:
            raise InvalidConfig(
                f"{source.config_path}: tensor {tensor.name!r}: BYTES: the backend 'openvino' serves no strings; "
                "the backend 'onnxruntime' does"
            )
    return actual


def _refuse_state(model: Any, artifact: Artifact) -> None:
    """Refuse what is carried from one run to the next: they are of different clients."""
    if model.get_variables() or model.get_sinks():
        raise InvalidArtifact(
            f"{artifact.path} keeps a state between its runs (ReadValue and Assign), which requests would share; make "
            "the state an input and an output: openvino.convert_model without the stateful transformation"
        )


def _tell_limits(model: Any, source: ModelSource, signature: Signature) -> None:
    """Say where answers may be less exact than the model has it, which OpenVINO does not."""
    wide = [spec.name for spec in (*signature.inputs, *signature.outputs) if spec.datatype is DataType.FP64]
    if wide:
        _log.warning("%s: OpenVINO computes FP64 in FP32 on a CPU: %s", source.name, ", ".join(map(repr, wide)))
    device = find_device("cpu")
    quantized = any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
    if quantized and device.instructions.isdisjoint(_ADDS_IN_32_BITS):
        _log.warning(
            "%s: its graph is quantized to 8 bits, and %s has none of %s: products are added in 16 bits, where weights "
            "of more than 7 bits overflow; quantize with 7 (reduce_range), or compare its answers",
            source.name,
            device,
            ", ".join(_ADDS_IN_32_BITS),
        )
