"""Facts the server states about itself. A leaf: any layer may emit them, and only telemetry counts them.

An observer is called on whatever thread the fact arose on, must be quick, and must not raise.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class FailureReason(enum.Enum):
    """Why a request failed, as Triton labels ``nv_inference_request_failure``."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


class BatchExecuted(NamedTuple):
    """A batch was executed and its requests answered: how many rows, without padding, and when what happened.

    Times are on the clock of ``time.monotonic``, in order: ``arrived_s`` of each request, when the batch was
    ``started_s``, its inputs were collated, the session had computed, and the last answer was encoded.
    """

    model: str
    version: int
    rows: int
    arrived_s: Sequence[float]
    started_s: float
    collated_s: float
    inferred_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request to a known model version got an error, ``request_s`` seconds after it arrived."""

    model: str
    version: int
    reason: FailureReason
    request_s: float


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A model version moved from one state to another; ``reason`` says why where there is something to say."""

    model: str
    version: int
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class VersionLoaded:
    """A model version has become READY.

    ``load_s`` is the seconds of reading, building and opening, ``warmup_s`` those of the slowest instance's warm-up.
    ``paused_s`` of both were pauses, so that requests to other models got their turn.
    ``compiled`` is how much was compiled meanwhile, of which ``cached`` was found in the compile cache. ``grown_bytes``
    is by how much the process grew, while others may have grown or shrunk it.
    """

    model: str
    version: int
    backend: str
    devices: Sequence[str]
    load_s: float
    warmup_s: float
    instances: int = 1
    compiled: int = 0
    cached: int = 0
    grown_bytes: int = 0
    paused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class VersionFreed:
    """A model version is gone. ``freed_bytes`` is by how much the process shrank, while others may have grown it."""

    model: str
    version: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class InstancesChanged:
    """A model version that serves has another number of instances now."""

    model: str
    version: int
    instances: int


@dataclass(frozen=True, slots=True)
class ModelSettled:
    """A change of a model has come to its end, or failed: what is known of it stands until the next."""

    model: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """Something was built on an instance's thread, or ran unbuilt: a :class:`preheat.compilations.Compilation`.

    ``ready``: it was announced by then, so a request waited for it.
    """

    model: str
    version: int
    instance: int
    kind: str
    what: str
    seconds: float
    cached: bool
    ready: bool


Event: TypeAlias = (
    BatchExecuted
    | Compiled
    | InstancesChanged
    | ModelSettled
    | RequestFailed
    | StateChanged
    | VersionFreed
    | VersionLoaded
)
Observer: TypeAlias = Callable[[Event], None]


def broadcast(every: Observer, *, rare: Sequence[Observer]) -> Observer:
    """One observer that passes each event to ``every``, and all but batches to those of ``rare``, in order.

    Batches are what there is many of, and what only counting is interested in.
    """

    def observe(event: Event) -> None:
        every(event)
        if type(event) is not BatchExecuted:
            for observer in rare:
                observer(event)

    return observe
