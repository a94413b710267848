"""A request on its way: admitted, waiting or executing, and answered exactly once."""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from preheat.errors import InternalError, ServingError
from preheat.messages import InferRequest, InferResponse
from preheat.scheduling.queue_policy import Standing
from preheat.tensors import Tensors

log = logging.getLogger(__name__)

Answer: TypeAlias = InferResponse | ServingError
# Arrays in an answer may be overwritten once the call returns: a reply encodes or copies them before that. It returns
# what the caller got, which is an error where the answer could not be delivered.
Reply: TypeAlias = Callable[[Answer], Answer]
# Requests share a batch only if their keys are equal: for each input present, its name and the shape that it is padded
# to, without the batch axis.
BatchKey: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


class LoneKey(tuple[tuple[str, tuple[int, ...]], ...]):
    """The batch key of a request that is to share its batch with no other: it equals none but itself."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Admitted(NamedTuple):
    """What admission made of a request that fits.

    Its tensors, its size along the batch axis (1 without one), and who may share its batch.
    """

    inputs: Tensors
    rows: int
    batch_key: BatchKey


class Pending:
    """An admitted request and the reply it is owed.

    Made by the thread that submits; afterwards any thread may try to :meth:`answer`, and exactly one succeeds.
    Everything else is fixed at construction, but for ``compute_s``: what its batch took the session, in seconds, set
    before an answer of the model's is given. Times are on the clock of ``time.monotonic``. ``settle`` is called after
    the reply has been given, by the same thread: the model version counts the answer and lets the request go.
    ``counts``: whether what becomes of it is stated in events.
    """

    __slots__ = (
        "_answer_right",
        "_reply",
        "_settle",
        "arrived_s",
        "batch_key",
        "compute_s",
        "counts",
        "inputs",
        "request",
        "rows",
        "standing",
    )

    def __init__(
        self,
        request: InferRequest,
        reply: Reply,
        *,
        admitted: Admitted,
        arrived_s: float,
        standing: Standing,
        settle: Callable[["Pending", Answer], None],
        counts: bool = True,
    ) -> None:
        self.request = request
        self.inputs = admitted.inputs
        self.rows = admitted.rows
        self.batch_key = admitted.batch_key
        self.arrived_s = arrived_s
        self.standing = standing
        self.counts = counts
        self.compute_s: float | None = None
        self._reply = reply
        self._settle = settle
        # Taken by the one call that may answer, and never given back.
        self._answer_right = threading.Lock()

    @property
    def answered(self) -> bool:
        """Whether the reply has been given: nothing more needs computing."""
        return self._answer_right.locked()

    def answer(self, answer: Answer) -> Answer | None:
        """Give the reply, unless it was given before: then None, else what the caller got. Never raises."""
        if not self._answer_right.acquire(blocking=False):
            return None
        try:
            given = self._reply(answer)
        except Exception:
            log.exception("the reply to a request for model '%s' could not be delivered", self.request.model)
            given = InternalError()
        self._settle(self, given)
        return given
