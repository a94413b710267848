"""A client of a running server, for the command line: our own service, and loading and unloading by the protocol's."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from preheat.errors import ServingError
from preheat.protocol import grpc_service_pb2 as inference
from preheat.protocol import repository_pb2 as pb
from preheat.repository.integrity import hash_file

_PIECE = 2**20
# What gRPC's own servers say of a service that they do not have.
_NO_METHOD = "Method not found!"
_INFERENCE = inference.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_REPOSITORY = pb.DESCRIPTOR.services_by_name["ModelRepository"].full_name
MessageT = TypeVar("MessageT", bound=Message)


class CallFailed(ServingError):
    """The server could not be reached, or refused; the text says which, and why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How a connection is encrypted: files in PEM. ``authorities`` None: those that gRPC knows."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class RepositoryClient:
    """Calls one server. For one thread. Every method raises CallFailed."""

    def __init__(self, address: str, *, timeout_s: float, identity: Identity | None = None) -> None:
        """``identity`` None: the connection is not encrypted. Raises OSError for a file that cannot be read."""
        self._address = address
        self._timeout_s = timeout_s
        options = [("grpc.max_receive_message_length", -1)]
        if identity is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(
                *(
                    None if path is None else path.read_bytes()
                    for path in (identity.authorities, identity.key, identity.certificate)
                )
            )
            self._channel = grpc.secure_channel(address, credentials, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def list_versions(self) -> Sequence[pb.ListResponse.Version]:
        """Every version."""
        return list(self._call(f"/{_REPOSITORY}/List", pb.ListRequest(), pb.ListResponse()).versions)

    def load(self, model: str) -> None:
        """Load a model as it is in the repository; returns when it is READY."""
        request = inference.RepositoryModelLoadRequest(model_name=model)
        self._call(f"/{_INFERENCE}/RepositoryModelLoad", request, inference.RepositoryModelLoadResponse())

    def unload(self, model: str) -> None:
        """Have a model served no more."""
        request = inference.RepositoryModelUnloadRequest(model_name=model)
        self._call(f"/{_INFERENCE}/RepositoryModelUnload", request, inference.RepositoryModelUnloadResponse())

    def roll_back(self, model: str) -> str:
        """Have served what was served before; what was done."""
        return self._call(f"/{_REPOSITORY}/Rollback", pb.RollbackRequest(model=model), pb.RollbackResponse()).text

    def push(
        self,
        model: str,
        files: Mapping[str, Path],
        *,
        version: int = 0,
        config: str | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> str:
        """Send a version's ``files``, by their paths in it; what became of it.

        ``progress`` is called with the bytes sent so far, on gRPC's thread. Raises OSError for a file that cannot be
        read.
        """
        call = self._channel.stream_unary(
            f"/{_REPOSITORY}/Push",
            request_serializer=pb.PushRequest.SerializeToString,
            response_deserializer=pb.PushResponse.FromString,
        )
        begin = pb.PushRequest.Begin(model=model, version=version, config=config)
        for path, source in files.items():
            begin.files.add(path=path, size=source.stat().st_size, sha256=hash_file(source))
        unread: list[OSError] = []
        try:
            return call(_pieces(begin, files.values(), progress, unread.append), timeout=self._timeout_s).text
        except grpc.RpcError as exc:
            raise (unread[0] if unread else self._failed(exc)) from exc

    def _call(self, method: str, request: Message, response: MessageT) -> MessageT:
        call = self._channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=type(response).FromString,
        )
        try:
            return call(request, timeout=self._timeout_s)
        except grpc.RpcError as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: grpc.RpcError) -> CallFailed:
        # What a channel raises is a call too, which the library's types do not say.
        call = cast("grpc.Call", exc)
        code, text = call.code(), call.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and "Preheat" not in text and "failed to connect" in text.lower():
            return CallFailed(f"no server answers at {self._address}: {text}; name another with --server")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallFailed(f"{self._address} has not answered within {self._timeout_s:.0f} s; see --timeout")
        if code is grpc.StatusCode.UNIMPLEMENTED and text == _NO_METHOD:
            return CallFailed(f"the server at {self._address} has no {_REPOSITORY}; is it Preheat, and recent enough?")
        return CallFailed(text or code.name)


def _pieces(
    begin: pb.PushRequest.Begin,
    sources: Iterable[Path],
    progress: Callable[[int], None],
    unread: Callable[[OSError], None],
) -> Iterator[pb.PushRequest]:
    """The messages of a push. Ends early at a file that cannot be read, after ``unread``; so the server refuses it."""
    yield pb.PushRequest(begin=begin)
    sent = 0
    try:
        for source in sources:
            with source.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield pb.PushRequest(piece=piece)
                    sent += len(piece)
                    progress(sent)
    except OSError as exc:
        # Raised, it would be gRPC's, which logs it and says nothing of it.
        unread(exc)
