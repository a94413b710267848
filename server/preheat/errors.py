"""What can go wrong, in the server's own words.

Every error that is meant for a client or an operator derives from :class:`ServingError`; its text names the thing,
says what is wrong with it and what would be right, and is safe to show. Anything else that escapes is a defect: it is
logged, and the client is told only that the server failed. Errors know nothing of gRPC: ``transport/status.py`` gives
each its status code.
"""

from typing import Self


class ServingError(Exception):
    """Root of the errors whose text may reach a client."""

    def as_answer(self) -> Self:
        """This error, without the frames that it came through.

        They hold what was used in them, such as a client's memory, and may hold the error in turn: then all of it
        would stay until the garbage collector comes by, which can take for ever.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


class InvalidRequest(ServingError):
    """The request contradicts the protocol or the model's signature. Sending it again cannot help."""


class MessageTooLarge(ServingError):
    """The message has more bytes than the server takes."""


class AlreadyExists(ServingError):
    """The name is taken."""


class RegionNotFound(ServingError):
    """No shared-memory region of that name is registered."""


class OutputTooLarge(ServingError):
    """An output does not fit where the client wants it."""


class ModelNotFound(ServingError):
    """No such model, no such version, or no version that is available."""


class ModelUnavailable(ServingError):
    """The model version is known but not READY now: it is loading, draining or has failed."""


class Unavailable(ServingError):
    """The server is not set up to do this now; another setting would allow it."""


class QueueFull(ServingError):
    """The model's queue is at its limit in requests or bytes. The caller may try again later."""


class RequestTimeout(ServingError):
    """The request's time ran out before a worker took it. It was not executed."""


class DeadlineExceeded(ServingError):
    """The call's own deadline passed before a worker took it. It was not executed, and its caller waits no more."""


class RequestCancelled(ServingError):
    """The caller left before its answer was ready."""


class ServerStopping(ServingError):
    """The server has been told to stop and takes, or finishes, no more requests."""


class Unsupported(ServingError):
    """The request asks for something this server does not do."""


class ExecutionFailed(ServingError):
    """The model raised, or answered something other than its signature promises.

    Raised by backends and by the worker.
    """


class InternalError(ServingError):
    """Something unforeseen. The text is fixed; the log has the trace."""

    def __init__(self) -> None:
        super().__init__("internal server error; the server's log has the details")


def reason_of(exc: BaseException) -> str:
    """Why something failed, for an operator: our own errors speak for themselves, others are named."""
    return str(exc) if isinstance(exc, ServingError) else f"{type(exc).__name__}: {exc}"


class LoadFailed(ServingError):
    """A model version could not be brought to READY. The text is the reason an operator sees."""


class InvalidConfig(LoadFailed):
    """A configuration names a file, a key and a value that cannot be: the text says which, and what is allowed."""


class InvalidArtifact(LoadFailed):
    """An artifact is missing, damaged, or of another kind than the backend takes."""


class BackendMissing(LoadFailed):
    """The backend is unknown, or what it needs is not installed or not present in this machine."""
