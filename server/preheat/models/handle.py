"""One model version that serves: what requests reach and what unloading waits for."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from preheat.backend import Model, Signature
from preheat.errors import (
    DeadlineExceeded,
    ExecutionFailed,
    InternalError,
    InvalidRequest,
    OutputTooLarge,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    ServerStopping,
    ServingError,
)
from preheat.messages import InferRequest, ModelMetadata, TensorMetadata
from preheat.models.caching import CachedSources
from preheat.models.lifecycle import Lifecycle
from preheat.models.recent import RecentRequests
from preheat.repository.completion import CompletedConfiguration
from preheat.scheduling.admission import Gate
from preheat.scheduling.padding import Padding
from preheat.scheduling.pending import Answer, LoneKey, Pending, Reply
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.queue_policy import QueuePolicies
from preheat.scheduling.worker import Worker
from preheat.telemetry.events import FailureReason, Observer, RequestFailed

log = logging.getLogger(__name__)

_REASONS: dict[type[ServingError], FailureReason] = {
    QueueFull: FailureReason.REJECTED,
    RequestTimeout: FailureReason.REJECTED,
    ServerStopping: FailureReason.REJECTED,
    RequestCancelled: FailureReason.CANCELED,
    DeadlineExceeded: FailureReason.CANCELED,
    ExecutionFailed: FailureReason.BACKEND,
    InternalError: FailureReason.BACKEND,
    InvalidRequest: FailureReason.OTHER,
    OutputTooLarge: FailureReason.OTHER,
}


@dataclass(frozen=True, slots=True)
class Engines:
    """What runs a model version: one loaded model per device, and the workers that own their sessions.

    ``cached`` is what they were loaded from: it is for whoever closes them to give up, once that has gone well.
    """

    models: Sequence[Model]
    workers: Sequence[Worker]
    queue: RequestQueue
    cached: CachedSources

    def close(self, timeout_s: float | None = None) -> bool:
        """Take no more requests, run what waits, close sessions and then models.

        False if a worker is still busy after ``timeout_s``: then the models stay open, since it may be using them; and
        if a model could not be closed.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self.queue.close()
        for worker in self.workers:
            if not worker.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic())):
                return False
        # All of them, also after one that fails.
        closed = [close_model(model) for model in self.models]
        return all(closed)


def close_model(model: Model) -> bool:
    """Close ``model``; False, and a trace in the log, if it raised: its neighbours must be freed all the same."""
    try:
        model.close()
    except BaseException:
        log.exception("closing a model failed")
        return False
    return True


class Handle:
    """A warm model version. Requests in flight are its leases: draining ends when the last is answered.

    Any thread may call it. ``_in_flight`` and ``_accepting`` change only under ``_lock``.
    """

    def __init__(
        self, lifecycle: Lifecycle, *, completed: CompletedConfiguration, engines: Engines, observer: Observer
    ) -> None:
        self.name = lifecycle.model
        self.version = lifecycle.version
        self.lifecycle = lifecycle
        self.completed = completed
        self._engines = engines
        self._observer = observer
        self._gate = Gate(
            self.name,
            completed.client_signature,
            padding=Padding(completed.signature, completed.buckets, completed.pad_values),
            reshapes=completed.reshapes,
        )
        batching = completed.configuration.batching
        self._policies = QueuePolicies() if batching is None else batching.queues
        # What may be asked again, of a successor, say; None while nobody wants to know.
        self.recent: RecentRequests | None = None
        # What its files lie in, where that goes when nobody holds it.
        self.origin: object = None
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._in_flight: set[Pending] = set()
        self._accepting = True

    @property
    def waiting(self) -> int:
        """How many requests are queued, not executing."""
        return len(self._engines.queue)

    @property
    def engines(self) -> Engines:
        """What runs it now."""
        return self._engines

    def keep_requests(self) -> None:
        """Keep some of what it is asked from now on, to be asked again."""
        if self.recent is None:
            self.recent = RecentRequests()

    def run_on(self, engines: Engines, completed: CompletedConfiguration) -> None:
        """Have another number of instances, the models, the queue and the signature being the same."""
        self._engines, self.completed = engines, completed

    def submit(
        self, request: InferRequest, reply: Reply, *, wake: bool = True, alone: bool = False, counts: bool = True
    ) -> Pending | None:
        """Admit and queue a request; None if this version takes no more, and then ``reply`` is not called.

        ``wake`` False: the caller calls :meth:`run_waiting` or :meth:`wake` soon. ``alone``: it shares its batch with
        no other. ``counts`` False: no event states what becomes of it.

        Raises InvalidRequest, or ExecutionFailed where a client's memory cannot be read, also without calling
        ``reply``. A full queue is answered through ``reply``.
        """
        arrived_s = time.monotonic()
        try:
            admitted = self._gate.admit(request)
            standing = self._policies.stand(request.parameters, arrived_s=arrived_s, deadline_s=request.deadline_s)
        except ServingError as exc:
            if counts:
                self._report_failure(_reason(exc), arrived_s)
            raise
        if alone:
            admitted = admitted._replace(batch_key=LoneKey(admitted.batch_key))
        elif self.recent is not None:
            self.recent.offer(request, admitted.inputs)
        pending = Pending(
            request,
            reply,
            admitted=admitted,
            arrived_s=arrived_s,
            standing=standing,
            settle=self._settle,
            counts=counts,
        )
        with self._lock:
            if not self._accepting:
                return None
            self._in_flight.add(pending)
        try:
            # Draining closes the queue only after the last lease returned, and this lease is held: it is open.
            self._engines.queue.put(pending, wake=wake)
        except QueueFull as exc:
            pending.answer(exc)
        except Exception:
            log.exception("a request for model '%s' could not be queued", self.name)
            pending.answer(InternalError())
        return pending

    def run_waiting(self) -> None:
        """Run what waits here and now if that is quick, else have a worker do it. Never raises.

        A model may hang, and then the calling thread does.
        """
        workers = self._engines.workers
        if len(workers) > 1 or not workers[0].run_here():
            self._engines.queue.wake()

    def wake(self) -> None:
        """Have a worker run what waits, if none is about to."""
        workers = self._engines.workers
        if len(workers) > 1 or not workers[0].busy:
            self._engines.queue.wake()

    def cancel(self, pending: Pending) -> None:
        """The caller has left: answer, and forget the request if it still waits. Its batch peers are not touched."""
        if pending.answer(RequestCancelled("the request was cancelled by its caller")):
            self._engines.queue.discard(pending)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and wait until all in flight are answered; False if ``timeout_s`` passed before."""
        with self._lock:
            self._accepting = False
            return self._idle.wait_for(lambda: not self._in_flight, timeout_s)

    def abandon(self, error: ServingError) -> int:
        """Answer everything in flight with ``error``; how many there were. What a session computes later is dropped."""
        with self._lock:
            in_flight = list(self._in_flight)
        for pending in in_flight:
            pending.answer(error)
            self._engines.queue.discard(pending)
        return len(in_flight)

    def stop_workers(self) -> None:
        """Let the workers end, after :meth:`drain`, without waiting for them."""
        self._engines.queue.close()

    def close(self, timeout_s: float | None = None) -> bool:
        """Free sessions and models, after :meth:`drain`; False if a worker was still busy after ``timeout_s``."""
        closed = self._engines.close(timeout_s)
        if closed:
            self._engines.cached.close()
        return closed

    def metadata(self, versions: Sequence[int]) -> ModelMetadata:
        """The model as clients see it, with ``versions`` listed."""
        signature = self.completed.client_signature
        return ModelMetadata(
            name=self.name,
            versions=tuple(map(str, versions)),
            platform=self.completed.proto.platform or self.completed.proto.backend,
            inputs=_tensor_metadata(signature, "inputs"),
            outputs=_tensor_metadata(signature, "outputs"),
        )

    def _report_failure(self, reason: FailureReason, arrived_s: float) -> None:
        self._observer(RequestFailed(self.name, self.version, reason, time.monotonic() - arrived_s))

    def _settle(self, pending: Pending, answer: Answer) -> None:
        if isinstance(answer, ServingError) and pending.counts:
            self._report_failure(_reason(answer), pending.arrived_s)
        with self._lock:
            self._in_flight.discard(pending)
            if not self._accepting and not self._in_flight:
                self._idle.notify_all()


def _reason(error: ServingError) -> FailureReason:
    return _REASONS.get(type(error), FailureReason.BACKEND)


def _tensor_metadata(signature: Signature, kind: str) -> tuple[TensorMetadata, ...]:
    batch = (-1,) if signature.batches else ()
    return tuple(
        TensorMetadata(
            spec.name, spec.datatype, batch + tuple(-1 if axis.size is None else axis.size for axis in spec.shape)
        )
        for spec in (signature.inputs if kind == "inputs" else signature.outputs)
    )
