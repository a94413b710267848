"""The requests that a version was asked lately: what its successor can be tried with."""

import threading
import time
from collections import deque

from preheat.messages import InferRequest
from preheat.scheduling.queue_policy import PRIORITY, TIMEOUT
from preheat.tensors import Tensors, raw_size, to_raw

_MOST_REQUESTS = 64
_MOST_BYTES = 64 * 2**20
# One in so many seconds is enough to see what is asked, and leaves out what it would cost to keep each.
_SECONDS_BETWEEN = 0.005
# Nor may what has to be copied hold requests up for more than about a hundredth of the time.
_BYTES_COPIED_PER_SECOND = 64 * 2**20


class RecentRequests:
    """A few of the latest requests, as they can be asked again: of all outputs, with no deadline. Any thread.

    ``_kept``, ``_bytes`` and ``_count`` change under ``_lock``; ``_next_s`` is read without, and may be late.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, InferRequest]] = deque()
        self._bytes = 0
        # How many were kept so far.
        self._count = 0
        self._next_s = 0.0

    def offer(self, request: InferRequest, inputs: Tensors) -> None:
        """Keep a request that was admitted with these ``inputs``, if one is due. On the way of each request."""
        now_s = time.monotonic()
        if now_s < self._next_s or request.payload_bytes > _MOST_BYTES:
            return
        self._next_s = now_s + _SECONDS_BETWEEN
        if request.sources:
            # What lies in a client's memory is no payload of the request's, but will be of the copy.
            size = sum(map(raw_size, inputs.values()))
            self._next_s = now_s + max(_SECONDS_BETWEEN, size / _BYTES_COPIED_PER_SECOND)
            if size > _MOST_BYTES:
                return
        kept = _as_asked_again(request, inputs)
        with self._lock:
            self._kept.append((self._count, kept))
            self._count += 1
            self._bytes += kept.payload_bytes
            while len(self._kept) > _MOST_REQUESTS or self._bytes > _MOST_BYTES:
                self._bytes -= self._kept.popleft()[1].payload_bytes

    def since(self, count: int) -> tuple[list[InferRequest], int]:
        """Those that are there of all but the first ``count``, the oldest first; and the count to ask with next."""
        with self._lock:
            return [request for number, request in self._kept if number >= count], self._count


def _as_asked_again(request: InferRequest, inputs: Tensors) -> InferRequest:
    tensors, size = request.inputs, request.payload_bytes
    if request.sources:
        # They lie in a client's memory, which it may change or take away.
        copies = {name: to_raw(array) for name, array in inputs.items()}
        tensors = tuple(tensor._replace(data=copies[tensor.name]) for tensor in tensors)
        size = sum(map(len, copies.values()))
    parameters = {key: value for key, value in request.parameters.items() if key not in (PRIORITY, TIMEOUT)}
    return InferRequest(request.model, "", "", tensors, parameters=parameters, payload_bytes=size)
