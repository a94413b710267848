"""Transports: RPC plumbing between a socket and the engine, and nothing else.

``status`` gives errors their gRPC codes, ``methods`` are the RPCs as functions of bytes, ``grpcio`` serves them on
grpc.aio.
"""
