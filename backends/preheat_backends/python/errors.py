"""How a model says that something went wrong, and what becomes of it."""

import enum
from collections.abc import Mapping
from types import UnionType

from preheat.errors import (
    ExecutionFailed,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    RequestCancelled,
    ServingError,
    Unsupported,
)


class TritonModelException(Exception):
    """What a model raises for a failure of its own. Its text reaches the clients."""


class ErrorCode(enum.Enum):
    """The kinds of :class:`TritonError`."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


_KINDS: Mapping[ErrorCode, type[ServingError]] = {
    ErrorCode.UNKNOWN: ExecutionFailed,
    ErrorCode.INTERNAL: ExecutionFailed,
    ErrorCode.NOT_FOUND: ModelNotFound,
    ErrorCode.INVALID_ARG: InvalidRequest,
    ErrorCode.UNAVAILABLE: ModelUnavailable,
    ErrorCode.UNSUPPORTED: Unsupported,
    ErrorCode.ALREADY_EXISTS: InvalidRequest,
    ErrorCode.CANCELLED: RequestCancelled,
}


class TritonError:
    """The answer to one request that failed, for ``InferenceResponse(error=...)``."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        require(message, str, "TritonError: message")
        require(code, ErrorCode, "TritonError: code (TritonError.INVALID_ARG and the like)")
        self._message = message
        self._code = code

    def message(self) -> str:
        """The text."""
        return self._message

    def code(self) -> ErrorCode:
        """The kind."""
        return self._code

    def as_serving_error(self) -> ServingError:
        """The server's error of this kind, with this text."""
        return _KINDS[self._code](self._message)

    def __str__(self) -> str:
        return self._message


def require(value: object, kind: type | UnionType, what: str) -> None:
    """Raise TypeError unless ``value`` is of ``kind``: models are seldom type-checked before they run."""
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        raise TypeError(f"{what} must be {wanted}, not {type(value).__name__}")


def unsupported(what: str) -> Unsupported:
    """The error for a part of Triton's interface that is not here."""
    return Unsupported(f"not supported by this server: {what}")


def describe(error: BaseException) -> str:
    """Type and text of what a model raised, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
