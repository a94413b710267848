"""The gRPC status of each error: one table, and the few errors whose code depends on the RPC."""

from grpc import StatusCode

from preheat.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ExecutionFailed,
    InternalError,
    InvalidRequest,
    LoadFailed,
    MessageTooLarge,
    ModelNotFound,
    ModelUnavailable,
    OutputTooLarge,
    QueueFull,
    RegionNotFound,
    RequestCancelled,
    RequestTimeout,
    ServerStopping,
    ServingError,
    Unavailable,
    Unsupported,
)

# As Triton answers (its S:src/grpc/grpc_utils.cc): clients retry UNAVAILABLE and give up on the others.
_CODES: dict[type[ServingError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    AlreadyExists: StatusCode.ALREADY_EXISTS,
    RegionNotFound: StatusCode.NOT_FOUND,
    OutputTooLarge: StatusCode.INTERNAL,
    # As gRPC's own libraries answer.
    MessageTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelUnavailable: StatusCode.UNAVAILABLE,
    Unavailable: StatusCode.UNAVAILABLE,
    QueueFull: StatusCode.UNAVAILABLE,
    RequestTimeout: StatusCode.UNAVAILABLE,
    # As gRPC's own libraries answer; Triton does not look at deadlines.
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: StatusCode.CANCELLED,
    ServerStopping: StatusCode.UNAVAILABLE,
    Unsupported: StatusCode.UNIMPLEMENTED,
    ExecutionFailed: StatusCode.INTERNAL,
    InternalError: StatusCode.INTERNAL,
    LoadFailed: StatusCode.INVALID_ARGUMENT,
}
_CODES_BY_RPC: dict[tuple[str, type[ServingError]], StatusCode] = {
    ("ModelStatistics", ModelNotFound): StatusCode.INVALID_ARGUMENT,
    ("ModelStatistics", ModelUnavailable): StatusCode.INVALID_ARGUMENT,
    ("RepositoryModelLoad", ModelNotFound): StatusCode.INTERNAL,
    ("RepositoryModelUnload", ModelNotFound): StatusCode.INTERNAL,
}
# A status travels in a header, which peers limit to 8 KiB, and non-ASCII characters take up to 12 bytes there.
_MAX_TEXT = 600


def code_of(error: ServingError, rpc: str) -> StatusCode:
    """The status code of ``error`` on ``rpc``, by its nearest class in the tables."""
    for kind in type(error).__mro__:
        code = _CODES_BY_RPC.get((rpc, kind)) or _CODES.get(kind)
        if code is not None:
            return code
    return StatusCode.INTERNAL


def text_of(error: ServingError) -> str:
    """The status text of ``error``, cut to what a header can carry."""
    return shorten(str(error))


def shorten(text: str) -> str:
    """``text``, cut to what a header can carry."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
