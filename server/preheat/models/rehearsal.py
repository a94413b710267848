"""Asking a version that is warm, before anybody else can, so that a request's way to it is warm too.

A warm-up runs batches. What is before and behind them runs for the first time with the first request: taking a message
apart, admission, the queue and waking a worker, cutting the answer and putting it into a message. That is up to a
millisecond, which is as much as a small model takes.
"""

import logging
import threading
from collections.abc import Sequence

from preheat.errors import QueueFull, RequestTimeout, ServingError, reason_of
from preheat.messages import InferResponse
from preheat.models.handle import Handle
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import decode_request, encode_response
from preheat.repository.completion import CompletedConfiguration
from preheat.scheduling.pending import Answer
from preheat.scheduling.warming import WarmupReport
from preheat.scheduling.warmup import smallest_row
from preheat.tensors import Tensors, to_raw

log = logging.getLogger(__name__)

# So many requests for each worker: Python adapts its code to what it is given in the first runs of it.
_ROUNDS = 4
# Beyond these nobody notices a millisecond, and others would notice what is run at full speed beside them.
_LONGEST_SECONDS = 0.1
_MOST_BYTES = 2**26


def rehearse(handle: Handle, reports: Sequence[WarmupReport]) -> None:
    """Ask ``handle``, which nobody else can reach yet, for the smallest bucket, and wait; no request of it is counted.

    Not where a bucket takes long or is large, or where sessions see requests whole, since these may have side effects:
    ``reports`` of the instances' warm-ups say so. What is compiled for it is counted as cold: the warm-up missed it.
    Raises nothing that the model answers, for it was run with the same in its warm-up.
    """
    if max(report.bucket_s for report in reports) > _LONGEST_SECONDS:
        return
    completed = handle.completed
    row = smallest_row(completed.signature, completed.buckets, completed.configuration.samples)
    if sum(array.nbytes for array in row.values()) > _MOST_BYTES:
        return
    message = _message(completed, row)
    for _ in range(_ROUNDS):
        questions = [_Question(handle, message) for _ in handle.engines.workers]
        for each in questions:
            each.wait()


class _Question:
    """A request that was asked, alone: while a worker runs it, another takes the next one."""

    def __init__(self, handle: Handle, message: bytes) -> None:
        self._name = f"{handle.name}/{handle.version}"
        self._answered = threading.Event()
        try:
            handle.submit(decode_request(message, deadline_s=None), self._reply, alone=True, counts=False)
        except ServingError as exc:
            self._reply(exc)

    def wait(self) -> None:
        """Until it is answered, which every request is."""
        self._answered.wait()

    def _reply(self, answer: Answer) -> Answer:
        try:
            if not isinstance(answer, InferResponse):
                raise answer
            encode_response(answer)
        except ServingError as exc:
            # A short queue, or little patience, is as configured. Of others clients may see the same, or ask for less:
            # the largest answers fit shared memory only.
            level = logging.DEBUG if isinstance(exc, QueueFull | RequestTimeout) else logging.INFO
            log.log(level, "%s: a request for practice was answered: %s", self._name, reason_of(exc))
        finally:
            self._answered.set()
        return answer


def _message(completed: CompletedConfiguration, row: Tensors) -> bytes:
    """A request of ``row``, as a client would send it."""
    request = pb.ModelInferRequest(model_name=completed.configuration.name)
    types = {spec.name: spec.datatype.value for spec in completed.client_signature.inputs}
    for name, array in row.items():
        sent = completed.as_clients_send(name, array)
        request.inputs.add(name=name, datatype=types[name], shape=sent.shape)
        request.raw_input_contents.append(to_raw(sent))
    return request.SerializeToString()
