"""Exit with 0 if the server says by the gRPC health protocol that it is serving, and with 1 if not.

It needs nothing but what the server itself has installed. ``PREHEAT_GRPC_PORT`` is the port to ask, as for the server.
"""

import argparse
import os
import sys

import grpc
from grpc_health.v1 import health_pb2

_PORT = os.environ.get("PREHEAT_GRPC_PORT", "8001")


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description="Ask a server for its health.")
    parser.add_argument("--address", default=f"127.0.0.1:{_PORT}", help="host:port (default: %(default)s)")
    parser.add_argument("--timeout-seconds", type=float, default=3.0, help="how long to wait (default: %(default)s)")
    arguments = parser.parse_args()
    with grpc.insecure_channel(arguments.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=arguments.timeout_seconds)
        except grpc.RpcError as error:
            print(f"{arguments.address}: {error.code().name}: {error.details()}")
            return 1
    print(f"{arguments.address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
