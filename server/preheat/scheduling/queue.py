"""The bounded queue in front of a model version's workers."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

from preheat.errors import QueueFull
from preheat.scheduling.batching import BatchLimits, Choice, choose
from preheat.scheduling.pending import BatchKey, Pending
from preheat.scheduling.queue_policy import QueuePolicies


class RequestQueue:
    """Requests waiting for a worker, bounded in requests and in payload bytes.

    Safe from any thread. All state is ``_levels`` (by priority, each in order of arrival), ``_waiting`` and ``_bytes``
    (how many they are, and the sum of their payloads) and ``_closed``, changed only under ``_lock``.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        max_requests: int,
        max_bytes: int,
        policies: QueuePolicies | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``max_requests`` may wait at each priority level that sets no limit of its own."""
        levels = (policies or QueuePolicies()).levels
        self._limits = limits
        self._max_requests = tuple(policy.max_requests or max_requests for policy in levels)
        self._max_bytes = max_bytes
        self._clock = clock
        # The condition's own lock: entered directly, it costs a fifth.
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._levels: tuple[OrderedDict[Pending, None], ...] = tuple(OrderedDict() for _ in levels)
        self._waiting = 0
        self._bytes = 0
        self._closed = False

    def __len__(self) -> int:
        return self._waiting

    def limit_rows(self, worthwhile: Mapping[BatchKey, int]) -> None:
        """From now on, join requests of these keys to no more rows."""
        with self._lock:
            self._limits = replace(self._limits, worthwhile=worthwhile)

    def put(self, pending: Pending, *, wake: bool = True) -> bool:
        """Add a request; False if the queue is closed. Raises QueueFull at a limit.

        ``wake`` False: the caller sees to it that a worker hears of it, by :meth:`wake` or by :meth:`take_now`.

        A request larger than the limit in bytes is taken when nothing else waits: it could never be served otherwise.
        """
        size, level = pending.request.payload_bytes, pending.standing.level
        with self._lock:
            if self._closed:
                return False
            if len(self._levels[level]) >= (most := self._max_requests[level]):
                where = f" at priority {level + 1}" if len(self._levels) > 1 else ""
                raise QueueFull(f"{_subject(pending)} Exceeds maximum queue size: {most} requests wait{where}")
            if self._waiting and self._bytes + size > self._max_bytes:
                raise QueueFull(
                    f"{_subject(pending)} Exceeds maximum queue size: {self._bytes} bytes wait, "
                    f"{size} more would pass the limit of {self._max_bytes}"
                )
            self._levels[level][pending] = None
            self._waiting += 1
            self._bytes += size
            if wake:
                self._news.notify()
        return True

    def wake(self) -> None:
        """Have a worker look."""
        with self._lock:
            self._news.notify()

    def take_now(self) -> Choice | None:
        """As :meth:`take`, but None if there is nothing to do now."""
        with self._lock:
            choice = choose(self._levels, self._clock(), self._limits)
            if not (choice.batch or choice.expired):
                return None
            self._remove(choice.batch)
            self._remove(choice.expired)
            return choice

    def wake_all(self) -> None:
        """Have every worker look, at whether it is to leave too."""
        with self._lock:
            self._news.notify_all()

    def take(self, leaving: Callable[[], bool] = lambda: False) -> Choice | None:
        """Block until there is a batch to run or a request to refuse. For workers.

        None once closed and empty, and for a worker that is ``leaving``, which others do not wait for.
        """
        with self._lock:
            while True:
                if leaving():
                    # The news that woke it may have been another's.
                    self._news.notify()
                    return None
                now_s = self._clock()
                choice = choose(self._levels, now_s, self._limits)
                if choice.batch or choice.expired:
                    self._remove(choice.batch)
                    self._remove(choice.expired)
                    # What is left may make another batch now; its own news went to the worker that is leaving with
                    # this one.
                    if self._waiting:
                        self._news.notify()
                    return choice
                if self._closed and not self._waiting:
                    return None
                self._news.wait(None if choice.look_again_s is None else max(0.0, choice.look_again_s - now_s))

    def discard(self, pending: Pending) -> None:
        """Forget a request that has been answered otherwise; no effect if it is not waiting."""
        with self._lock:
            if pending in self._levels[pending.standing.level]:
                self._remove([pending])
                # What waited behind it may be a batch now.
                self._news.notify()

    def drain(self) -> list[Pending]:
        """Everything that waits, which waits no more: for the caller to answer."""
        with self._lock:
            waiting = [pending for level in self._levels for pending in level]
            self._remove(waiting)
        return waiting

    def close(self) -> None:
        """Take no more requests. Workers drain what waits, then :meth:`take` returns None."""
        with self._lock:
            self._closed = True
            self._news.notify_all()

    def _remove(self, gone: list[Pending]) -> None:
        for pending in gone:
            del self._levels[pending.standing.level][pending]
            self._waiting -= 1
            self._bytes -= pending.request.payload_bytes


def _subject(pending: Pending) -> str:
    """How Triton begins the errors that name a request."""
    return f"[request id: {pending.request.id or '<id_unknown>'}]"
