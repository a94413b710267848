"""Asking a version that is warm, before anybody else can, so that all of a request's way is warm with it.

A warm-up runs batches. What is before and behind them runs for the first time with the first request: taking a message
apart, admission, the queue and waking a worker, cutting the answer and putting it into a message. That is up to a
millisecond, which is as much as a small model takes.
"""

import logging
import threading
import time

from preheat.errors import QueueFull, RequestTimeout, ServingError, reason_of
from preheat.messages import InferResponse
from preheat.models.handle import Handle
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import decode_request, encode_response
from preheat.repository.completion import CompletedConfiguration
from preheat.scheduling.pending import Answer
from preheat.scheduling.warmup import smallest_row
from preheat.tensors import Array, to_raw

log = logging.getLogger(__name__)

# Each worker gets so many requests, one after the other, unless they take too long: Python adapts its code to what it
# is given in the first runs of it, and large models lose nothing.
_ROUNDS = 4
_LONGEST_SECONDS = 0.5


def rehearse(handle: Handle) -> None:
    """Ask ``handle``, which nobody else can reach yet, for the smallest bucket, and wait; nothing of it is counted.

    For sessions that see requests whole it does nothing, since they may have side effects. Raises nothing that the
    model answers: it was run with the same in its warm-up.
    """
    if handle.completed.whole_requests:
        return
    message = _message(handle.completed)
    until_s = time.monotonic() + _LONGEST_SECONDS
    for _ in range(_ROUNDS):
        questions = [_Question(handle, message) for _ in handle.engines.workers]
        for each in questions:
            each.wait()
        if time.monotonic() >= until_s:
            return


class _Question:
    """A request that was asked, alone, so that another worker takes the next one."""

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
        except (QueueFull, RequestTimeout):
            pass  # the model's queue is short, or its patience: as configured
        except ServingError as exc:
            # Clients may see the same, or ask for less: the largest answers fit shared memory only.
            log.info("%s: a request for practice was answered: %s", self._name, reason_of(exc))
        finally:
            self._answered.set()
        return answer


def _message(completed: CompletedConfiguration) -> bytes:
    """A request of one row, as a client would send it."""
    signature, configuration = completed.signature, completed.configuration
    request = pb.ModelInferRequest(model_name=configuration.name)
    types = {spec.name: spec.datatype.value for spec in completed.client_signature.inputs}
    for name, row in smallest_row(signature, completed.buckets, configuration.samples).items():
        array = _as_clients_send(completed, name, row)
        request.inputs.add(name=name, datatype=types[name], shape=array.shape)
        request.raw_input_contents.append(bytes(to_raw(array)))
    return request.SerializeToString()


def _as_clients_send(completed: CompletedConfiguration, name: str, array: Array) -> Array:
    reshape = completed.reshapes.get(name)
    return array if reshape is None else reshape.to_client(array, batched=completed.signature.batches)
