"""Asking a server what a model is."""

from typing import Any

import grpc
from loadtests.model import Model, Tensor
from loadtests.options import LoadTestError
from tritonclient.grpc import service_pb2, service_pb2_grpc

_DEADLINE_S = 10.0


def describe_model(channel: grpc.Channel, name: str, version: str) -> Model:
    """Ask the server for a model; ``version`` may be empty. Raises LoadTestError where there is none, or no server."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=name, version=version), timeout=_DEADLINE_S)
        # Metadata alone does not tell a batch axis from a variable dimension.
        config = stub.ModelConfig(
            service_pb2.ModelConfigRequest(name=name, version=version), timeout=_DEADLINE_S
        ).config
    except grpc.RpcError as error:
        raise LoadTestError(f"the server does not describe model {name!r}: {describe_failure(error)}") from error
    batch_axes = 1 if config.max_batch_size else 0
    return Model(
        name=name,
        version=version,
        max_batch_size=config.max_batch_size,
        inputs=_tensors(metadata.inputs, batch_axes),
        outputs=_tensors(metadata.outputs, batch_axes),
        optional=frozenset(each.name for each in config.input if each.optional),
    )


def describe_failure(error: Any) -> str:
    """A failed call, in words that are the same for each that fails so: its whole text has the time in it."""
    return f"{error.code().name}: {error.details()}"


def _tensors(protos: Any, batch_axes: int) -> dict[str, Tensor]:
    return {each.name: Tensor(each.name, each.datatype, tuple(each.shape[batch_axes:])) for each in protos}
