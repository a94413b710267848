"""The one door that every transport calls."""

import enum
from dataclasses import dataclass

import preheat
from preheat.errors import InvalidRequest, ServerStopping, ServingError
from preheat.messages import InferRequest, ModelMetadata, ServerMetadata
from preheat.models.handle import Handle
from preheat.models.registry import Registry
from preheat.protocol import model_config_pb2 as pb
from preheat.scheduling.pending import Pending, Reply

# The protocol extensions that work. Clients switch on these: list nothing that does not.
EXTENSIONS = ("model_configuration", "binary_tensor_data", "parameters")


class Phase(enum.Enum):
    """What the server is doing, seen from a client."""

    SERVING = "SERVING"
    # Not ready any more, but still answering: load balancers need time to notice.
    LAME_DUCK = "LAME_DUCK"
    STOPPING = "STOPPING"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a caller keeps of a submitted request: the way to call it off."""

    handle: Handle
    pending: Pending

    def cancel(self) -> None:
        """The caller has left. The reply is given RequestCancelled unless it was already given. Any thread."""
        self.handle.cancel(self.pending)


class Engine:
    """Requests in, replies out; and what the server knows of itself.

    Any thread may call any method, and none blocks. ``_phase`` only moves forward.
    """

    def __init__(self, registry: Registry, *, name: str) -> None:
        self._registry = registry
        self._name = name
        self._phase = Phase.SERVING

    def submit(self, request: InferRequest, reply: Reply) -> Ticket | None:
        """Take a request, and call ``reply`` exactly once with its answer or an error: now, or later on another thread.

        None if it was answered at once. Arrays in the answer are only valid until ``reply`` returns.
        """
        try:
            return self._submit(request, reply)
        except ServingError as exc:
            reply(exc)
            return None

    def enter(self, phase: Phase) -> None:
        """Move to ``phase`` on the way to stopping."""
        self._phase = phase

    def live(self) -> bool:
        """Whether the server is up. Raises ServerStopping on its way down, as Triton answers then."""
        self._refuse_when_stopping()
        return True

    def ready(self) -> bool:
        """Whether every model is READY and the server is not on its way down."""
        return self._phase is Phase.SERVING and self._registry.all_ready()

    def model_ready(self, model: str, version: str) -> bool:
        """Whether a request for it would be taken.

        False for what is unknown. Raises InvalidRequest for a bad version.
        """
        return self._phase is not Phase.STOPPING and self._registry.is_ready(model, version)

    def server_metadata(self) -> ServerMetadata:
        """The server's name, version and extensions."""
        self._refuse_when_stopping()
        return ServerMetadata(self._name, preheat.__version__, EXTENSIONS)

    def model_metadata(self, model: str, version: str) -> ModelMetadata:
        """A model's tensors and READY versions. Raises ModelNotFound, ModelUnavailable, InvalidRequest."""
        self._refuse_when_stopping()
        handle = self._registry.find(model, version)
        return handle.metadata([handle.version] if version else self._registry.ready_versions(model))

    def model_config(self, model: str, version: str) -> pb.ModelConfig:
        """A model's effective configuration.

        Not to be changed. Raises ModelNotFound, ModelUnavailable, InvalidRequest.
        """
        self._refuse_when_stopping()
        return self._registry.find(model, version).completed.proto

    def _submit(self, request: InferRequest, reply: Reply) -> Ticket:
        self._refuse_when_stopping()
        _refuse_reserved_parameters(request)
        while True:
            handle = self._registry.find(request.model, request.version)
            pending = handle.submit(request, reply)
            if pending is not None:
                return Ticket(handle, pending)
            # It began to drain between the two calls: look again, and find its successor or that there is none.

    def _refuse_when_stopping(self) -> None:
        if self._phase is Phase.STOPPING:
            raise ServerStopping("GRPC server is shutting down and has stopped accepting new requests.")


def _refuse_reserved_parameters(request: InferRequest) -> None:
    """Keys that begin with ``triton_`` are the protocol's own, and none of them is for unary calls."""
    for key in request.parameters:
        if key.startswith("triton_"):
            raise InvalidRequest(f"request parameter '{key}': keys that begin with 'triton_' are reserved")
