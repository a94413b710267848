"""Pure translation between wire bytes and messages: no sockets, no threads, no models.

The wire format is defined by two .proto files of package `inference`, the very names Triton's clients use. One process
cannot load two definitions of one name, so a process that serves cannot import `tritonclient.grpc`: clients run in a
process of their own.
"""
