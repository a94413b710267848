"""The server's and the models' metadata as protobuf messages. Pure; any thread."""

from collections.abc import Iterable

from preheat.messages import (
    DurationStatistic,
    ModelIndexEntry,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    TensorMetadata,
)
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


def encode_statistics(statistics: Iterable[ModelStatistics]) -> pb.ModelStatisticsResponse:
    """The ModelStatistics answer."""
    return pb.ModelStatisticsResponse(model_stats=[_encode_model_statistics(each) for each in statistics])


def encode_index(entries: Iterable[ModelIndexEntry]) -> pb.RepositoryIndexResponse:
    """The RepositoryIndex answer."""
    rows = [
        pb.RepositoryIndexResponse.ModelIndex(
            name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
        )
        for entry in entries
    ]
    return pb.RepositoryIndexResponse(models=rows)


def _encode_model_statistics(statistics: ModelStatistics) -> pb.ModelStatistics:
    durations = {name: _encode_duration(duration) for name, duration in statistics.durations.items()}
    return pb.ModelStatistics(
        name=statistics.name,
        version=statistics.version,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.inferences,
        execution_count=statistics.executions,
        inference_stats=pb.InferStatistics(**durations),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=batch.rows,
                compute_input=_encode_duration(batch.compute_input),
                compute_infer=_encode_duration(batch.compute_infer),
                compute_output=_encode_duration(batch.compute_output),
            )
            for batch in statistics.batches
        ],
    )


def _encode_duration(duration: DurationStatistic) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))


def _encode_tensor(tensor: TensorMetadata) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
