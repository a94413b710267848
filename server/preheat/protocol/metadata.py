"""The server's and the models' metadata as protobuf messages. Pure; any thread."""

from preheat.messages import ModelMetadata, ServerMetadata, TensorMetadata
from preheat.protocol import grpc_service_pb2 as pb


def encode_server_metadata(metadata: ServerMetadata) -> pb.ServerMetadataResponse:
    """The ServerMetadata answer."""
    return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)


def encode_model_metadata(metadata: ModelMetadata) -> pb.ModelMetadataResponse:
    """The ModelMetadata answer."""
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[_encode_tensor(tensor) for tensor in metadata.inputs],
        outputs=[_encode_tensor(tensor) for tensor in metadata.outputs],
    )


def _encode_tensor(tensor: TensorMetadata) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
