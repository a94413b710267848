"""Metadata as clients read it."""

from preheat.messages import ModelMetadata, ServerMetadata, TensorMetadata
from preheat.protocol.metadata import encode_model_metadata, encode_server_metadata
from preheat.tensors import DataType


def test_the_servers_metadata_is_carried_over() -> None:
    message = encode_server_metadata(ServerMetadata("cats", "1.2", ("statistics", "parameters")))
    assert (message.name, message.version, list(message.extensions)) == ("cats", "1.2", ["statistics", "parameters"])


def test_a_models_metadata_is_carried_over_with_the_protocols_names_of_datatypes() -> None:
    message = encode_model_metadata(
        ModelMetadata(
            "m",
            ("1", "3"),
            "eager",
            (TensorMetadata("ids", DataType.INT64, (-1, -1)), TensorMetadata("text", DataType.BYTES, (-1, 1))),
            (TensorMetadata("pooled", DataType.BF16, (-1, 384)),),
        )
    )
    assert (message.name, list(message.versions), message.platform) == ("m", ["1", "3"], "eager")
    assert [(each.name, each.datatype, list(each.shape)) for each in message.inputs] == [
        ("ids", "INT64", [-1, -1]),
        ("text", "BYTES", [-1, 1]),
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in message.outputs] == [("pooled", "BF16", [-1, 384])]
