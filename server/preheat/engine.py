"""The one door that every transport calls."""

import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import preheat
from preheat.errors import (
    InternalError,
    InvalidRequest,
    ModelNotFound,
    ServerStopping,
    ServingError,
    Unavailable,
    Unsupported,
)
from preheat.memory.regions import Regions
from preheat.messages import (
    BatchStatistics,
    DurationStatistic,
    InferRequest,
    ModelIndexEntry,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    VersionReport,
)
from preheat.models.handle import Handle
from preheat.models.lifecycle import State
from preheat.models.manager import NO_FILES, ModelManager
from preheat.models.registry import Registry, VersionState
from preheat.protocol import model_config_pb2 as pb
from preheat.reports import version_reports
from preheat.repository.arrival import Arrival, PushedFile
from preheat.scheduling.pending import Pending, Reply
from preheat.sharing import share
from preheat.telemetry.statistics import Statistics, VersionStatistics

log = logging.getLogger(__name__)

# The protocol extensions that work. Clients switch on these: list nothing that does not.
EXTENSIONS = ("model_configuration", "binary_tensor_data", "parameters", "statistics", "schedule_policy")
SHARED_MEMORY_EXTENSIONS = ("system_shared_memory",)
CUDA_SHARED_MEMORY_EXTENSIONS = ("cuda_shared_memory",)
CONTROL_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")

_NO_UPLOADS = "clients may send no models; start the server with --allow-model-upload true"

# The index has Triton's words for our states.
_INDEX_STATES = {
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}
# A key that clients may send with any request; it only has a meaning on streams.
_EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"


class Control(enum.Enum):
    """When models are loaded and unloaded: as the repositories change and clients ask, as they ask, or at the start."""

    WATCH = "watch"
    EXPLICIT = "explicit"
    NONE = "none"


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

    @property
    def answered(self) -> bool:
        """Whether the reply has been given, or is being given."""
        return self.pending.answered

    def cancel(self) -> None:
        """The caller has left. The reply is given RequestCancelled unless it was already given. Any thread."""
        self.handle.cancel(self.pending)


class Engine:
    """Requests in, replies out; what the server knows of itself; and control of its models.

    Any thread may call any method; only :meth:`load` and :meth:`unload` block, and :meth:`submit` for as long as it
    takes to copy what a client shares and may change, or has on a GPU. ``_phase`` only moves forward.
    """

    def __init__(
        self,
        registry: Registry,
        manager: ModelManager,
        statistics: Statistics,
        *,
        name: str,
        control: Control,
        regions: Regions | None = None,
        uploads: bool = False,
    ) -> None:
        """``regions`` None: clients may share no memory. ``uploads``: they may send models."""
        self._uploads = uploads
        self._regions = regions
        self._registry = registry
        self._manager = manager
        self._statistics = statistics
        self._name = name
        self._control = control
        self._phase = Phase.SERVING

    def submit(self, request: InferRequest, reply: Reply, *, wake: bool = True) -> Ticket | None:
        """Take a request, and call ``reply`` exactly once with its answer or an error: now, or later on another thread.

        The ticket calls it off; None if it was refused before it was queued. Arrays in the answer are only valid until
        ``reply`` returns. ``wake`` False: the caller wakes the ticket's handle soon.
        """
        try:
            return self._submit(request, reply, wake=wake)
        except ServingError as exc:
            error = exc
        except Exception:
            log.exception("a request for model '%s' could not be submitted", request.model)
            error = InternalError()
        reply(error)
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
        """Whether a request for it would be taken; False if unknown. Raises InvalidRequest for a bad version."""
        return self._phase is not Phase.STOPPING and self._registry.is_ready(model, version)

    def models_ready(self) -> dict[str, bool]:
        """For every model that was ever tried, whether a request for it would be taken."""
        serving = self._phase is Phase.SERVING
        models = {row.model for row in self._registry.index()}
        return {model: serving and self._registry.is_ready(model, "") for model in sorted(models)}

    def server_metadata(self) -> ServerMetadata:
        """The server's name, version and extensions."""
        self._refuse_when_stopping()
        extensions = EXTENSIONS + (() if self._control is Control.NONE else CONTROL_EXTENSIONS)
        if self._regions is not None:
            extensions += SHARED_MEMORY_EXTENSIONS
            extensions += CUDA_SHARED_MEMORY_EXTENSIONS if self._regions.has_cuda else ()
        return ServerMetadata(self._name, preheat.__version__, extensions)

    def model_metadata(self, model: str, version: str) -> ModelMetadata:
        """A model's tensors and READY versions. Raises ModelNotFound, ModelUnavailable, InvalidRequest."""
        self._refuse_when_stopping()
        handle = self._registry.find(model, version)
        listed = [handle] if version else self._registry.handles_of(model)
        return handle.metadata([each.version for each in listed])

    def model_config(self, model: str, version: str) -> pb.ModelConfig:
        """A model's effective configuration, not to be changed.

        Raises ModelNotFound, ModelUnavailable, InvalidRequest.
        """
        self._refuse_when_stopping()
        return self._registry.find(model, version).completed.proto

    def statistics(self, model: str, version: str) -> list[ModelStatistics]:
        """The statistics of a READY version, of all of a model's if ``version`` is empty, of all if ``model`` is too.

        Raises ModelNotFound, ModelUnavailable, InvalidRequest.
        """
        self._refuse_when_stopping()
        if not model:
            if version:
                raise InvalidRequest(f"version '{version}': statistics of all models are of all their versions")
            handles = sorted(self._registry.handles(), key=lambda each: (each.name, each.version))
        else:
            found = self._find_for_statistics(model, version)
            handles = [found] if version else self._registry.handles_of(model)
        return [_statistics_message(each, self._statistics.of(each.name, each.version)) for each in handles]

    def index(self, *, ready_only: bool) -> list[ModelIndexEntry]:
        """Every model in the repositories and every version that was tried, sorted by name."""
        self._refuse_when_stopping()
        rows = [_index_entry(row) for row in self._registry.index()]
        if ready_only:
            return [row for row in rows if row.state == "READY"]
        tried = {row.name for row in rows}
        rows += [ModelIndexEntry(name) for name in self._manager.names_on_disk() if name not in tried]
        return sorted(rows, key=lambda row: row.name)

    def regions(self) -> Regions:
        """The shared memory that clients have registered. Raises Unsupported where the server was not given any."""
        if self._regions is None:
            raise Unsupported(
                "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
            )
        return self._regions

    def load(self, model: str, *, config: str | None = None, files: Mapping[str, bytes] = NO_FILES) -> None:
        """Load a model from its repository, as it is now; returns when it is READY.

        ``config``, a ModelConfig in JSON, stands for its own until it is loaded otherwise, as do ``files``, by
        VERSION/NAME, for all of its files. Blocks. Raises Unavailable, Unsupported, InvalidRequest, ModelNotFound, and
        LoadFailed.
        """
        self._refuse_without_control("load")
        if files and not self._uploads:
            raise Unsupported(f"load parameter 'file:{next(iter(files))}': {_NO_UPLOADS}")
        if files and config is None:
            raise InvalidRequest("load parameter 'file': needs 'config', for which the files are")
        self._manager.load_model(model, config, files)

    def unload(self, model: str) -> None:
        """Serve a model no more; requests in flight are finished. Blocks. Raises Unavailable, ModelNotFound."""
        self._refuse_without_control("unload")
        self._manager.unload_model(model)

    def reports(self) -> list[VersionReport]:
        """What an operator wants to know of every version."""
        self._refuse_when_stopping()
        return version_reports(self._registry, self._statistics, self._manager.names_on_disk())

    def rollback(self, model: str) -> str:
        """Serve what was served before; what was done. Blocks. Raises Unavailable, ModelNotFound, LoadFailed."""
        self._refuse_without_control("rollback")
        return self._manager.roll_back(model)

    def begin_push(self, model: str, version: int, files: Sequence[PushedFile], config: str | None) -> Arrival:
        """Begin to receive a version; the caller writes to it, and then calls :meth:`finish_push`, or abandons it.

        Blocks. Raises Unsupported, AlreadyExists, InvalidRequest, and OSError.
        """
        self._refuse_when_stopping()
        if not self._uploads:
            raise Unsupported(_NO_UPLOADS)
        return self._manager.receive(model, version, files, config)

    def finish_push(self, arrival: Arrival) -> str:
        """Check what was received and put it into the repository, to be served if that is watched; what became of it.

        Blocks until it is served. Raises InvalidRequest, AlreadyExists, LoadFailed, and OSError.
        """
        arrival.check()
        self._refuse_when_stopping()
        return self._manager.place(arrival.model, arrival.place, load=self._control is Control.WATCH)

    def _submit(self, request: InferRequest, reply: Reply, *, wake: bool) -> Ticket:
        self._refuse_when_stopping()
        if request.parameters:
            _refuse_reserved_parameters(request)
        if request.sources or request.places:
            request, reply = share(self.regions(), request, reply)
        while True:
            handle = self._registry.find(request.model, request.version)
            pending = handle.submit(request, reply, wake=wake)
            if pending is not None:
                return Ticket(handle, pending)
            # It began to drain between the two calls: look again, and find its successor or that there is none.

    def _find_for_statistics(self, model: str, version: str) -> Handle:
        """As Triton words it, which clients match."""
        try:
            return self._registry.find(model, version)
        except ModelNotFound as exc:
            subject = "model version is not available for model" if version else "model"
            available = "" if version else " is not available"
            raise ModelNotFound(f"requested {subject} '{model}'{available}: {exc}") from exc

    def _refuse_when_stopping(self) -> None:
        if self._phase is Phase.STOPPING:
            raise ServerStopping("GRPC server is shutting down and has stopped accepting new requests.")

    def _refuse_without_control(self, what: str) -> None:
        self._refuse_when_stopping()
        if self._control is Control.NONE:
            raise Unavailable(
                f"explicit model {what} is not allowed; start the server with --model-control-mode watch or explicit"
            )


def _refuse_reserved_parameters(request: InferRequest) -> None:
    """Keys that begin with ``triton_`` are the protocol's own."""
    for key, value in request.parameters.items():
        if key == _EMPTY_FINAL_RESPONSE and isinstance(value, bool):
            continue
        if key.startswith("triton_"):
            raise InvalidRequest(f"request parameter '{key}': keys that begin with 'triton_' are reserved")


def _index_entry(row: VersionState) -> ModelIndexEntry:
    version = "" if row.version is None else str(row.version)
    return ModelIndexEntry(row.model, version, _INDEX_STATES[row.state], row.reason)


def _statistics_message(handle: Handle, statistics: VersionStatistics) -> ModelStatistics:
    requests = statistics.requests
    return ModelStatistics(
        name=handle.name,
        version=str(handle.version),
        last_inference_ms=statistics.last_inference_ms,
        inferences=statistics.inferences,
        executions=statistics.executions,
        durations={
            "success": DurationStatistic(requests, statistics.request_s),
            "fail": DurationStatistic(sum(statistics.failures.values()), statistics.failed_s),
            "queue": DurationStatistic(requests, statistics.queue_s),
            "compute_input": DurationStatistic(requests, statistics.compute_input_s),
            "compute_infer": DurationStatistic(requests, statistics.compute_infer_s),
            "compute_output": DurationStatistic(requests, statistics.compute_output_s),
        },
        batches=tuple(
            BatchStatistics(
                rows,
                DurationStatistic(size.executions, size.compute_input_s),
                DurationStatistic(size.executions, size.compute_infer_s),
                DurationStatistic(size.executions, size.compute_output_s),
            )
            for rows, size in sorted(statistics.batch_sizes.items())
        ),
    )
