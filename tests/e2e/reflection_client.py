"""A small grpcurl: `ADDRESS list`, `ADDRESS describe MESSAGE`, `ADDRESS call SERVICE/METHOD` with a JSON body on stdin.

All descriptors come from the server, by reflection.
"""

import sys
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

LIMIT_S = 30.0


def main(address: str, command: str, name: str = "") -> None:
    """Print what the command gives."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool: Any = DescriptorPool(database)
        if command == "list":
            lines = database.get_services()
        elif command == "describe":
            lines = [field.name for field in pool.FindMessageTypeByName(name).fields]
        else:
            lines = [call(channel, pool, name, sys.stdin.read())]
        sys.stdout.write("\n".join(lines) + "\n")
    assert not [module for module in sys.modules if module.split(".")[0] in {"preheat", "tritonclient"}]


def call(channel: grpc.Channel, pool: Any, path: str, body: str) -> str:
    """Send the JSON to SERVICE/METHOD; the answer as JSON."""
    service, method = path.split("/")
    descriptor = pool.FindServiceByName(service).FindMethodByName(method)
    request = json_format.Parse(body, GetMessageClass(descriptor.input_type)(), descriptor_pool=pool)
    ask: Any = channel.unary_unary(f"/{path}")  # bytes to bytes
    answer = ask(request.SerializeToString(), timeout=LIMIT_S)
    return json_format.MessageToJson(GetMessageClass(descriptor.output_type).FromString(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
