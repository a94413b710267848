"""The contract between the server and a backend.

A backend is a plugin: an entry point in the group ``preheat.backends`` that names a :class:`Backend` subclass. It
imports from the server only this module, :mod:`preheat.compilations`, :mod:`preheat.tensors` and
:mod:`preheat.errors`, and its own heavy library inside the methods that need it (or at the top of its module, which the
server imports only when a model asks for the backend).

The life of a model version, and who calls what:

1. A loader thread calls :meth:`Backend.complete`, then :meth:`Backend.load`. Both may be slow; no lock is held.
2. Each instance has one OS thread for life. On it the server calls :meth:`Model.open`, then infers for warm-up, then
   infers for clients, then calls :meth:`Session.close`. Nothing else ever touches the session.
3. When every session is closed, :meth:`Model.close` frees what they shared.

The server checks every request against the :class:`Signature` before it reaches a session, and every answer after.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from preheat.errors import InvalidConfig, ServingError
from preheat.memory.staging import allocate_aligned
from preheat.parameters import parse_parameters
from preheat.tensors import Array, DataType, Tensors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis of a tensor: the sizes it may have.

    Axes of equal ``name`` have equal size within one request, whatever tensors they belong to; None is an axis tied
    to no other. ``maximum`` None is unbounded. A size must be a multiple of ``multiple_of``.
    """

    name: str | None = None
    minimum: int = 0
    maximum: int | None = None
    multiple_of: int = 1

    @classmethod
    def fixed(cls, size: int) -> "Dimension":
        """An axis that always has ``size``."""
        return cls(minimum=size, maximum=size)

    @property
    def size(self) -> int | None:
        """The size of a fixed axis, None for one that may vary."""
        return self.minimum if self.minimum == self.maximum else None

    def allows(self, size: int) -> bool:
        """Whether an axis of ``size`` is within the bounds."""
        return self.minimum <= size and (self.maximum is None or size <= self.maximum) and size % self.multiple_of == 0

    def __str__(self) -> str:
        if self.size is not None:
            return str(self.size)
        bounds = f"{self.minimum}..{'' if self.maximum is None else self.maximum}"
        step = f" in steps of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{self.name or 'any'}({bounds}{step})"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output. In a :class:`Signature` of a batching model ``shape`` leaves out the batch axis."""

    name: str
    datatype: DataType
    shape: tuple[Dimension, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """What a loaded model takes and gives.

    ``max_batch_size`` 0: the model does not batch, shapes are whole. At least 1: every tensor has a batch axis before
    its ``shape``, from 1 to ``max_batch_size`` rows. ``row_independent`` False: a row's answer depends on the rows it
    shares a batch with.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    row_independent: bool = True

    @property
    def batches(self) -> bool:
        """Whether tensors carry a batch axis."""
        return self.max_batch_size > 0


@dataclass(frozen=True, slots=True)
class PartialConfig:
    """What an artifact says of itself. Shapes are whole: axis 0 is the batch axis where the artifact has one.

    Empty ``inputs`` or ``outputs``: the artifact does not say, and the configuration has to. ``max_batch_size`` and
    ``dynamic_batching`` are for artifacts whose author decides them in code, and count where the configuration is
    silent; None and False leave them to it. ``whole_requests``: sessions are :class:`RequestSession`, so the server
    shapes nothing, and a configuration that asks for it is refused.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    row_independent: bool = True
    max_batch_size: int | None = None
    dynamic_batching: bool = False
    whole_requests: bool = False


class Outside(enum.Enum):
    """What becomes of a request whose shape no bucket holds."""

    REFUSE = "refuse"
    EAGER = "eager"
    COMPILE = "compile"


@dataclass(frozen=True, slots=True)
class Buckets:
    """The shapes that a model version is warmed for.

    ``rows`` are batch sizes, ``sizes`` those of the varying dimensions that have buckets, by name; all ascending. A
    varying dimension without an entry in ``sizes`` reaches the model at whatever size a request has.
    """

    rows: tuple[int, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outside: Outside = Outside.REFUSE


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model version comes from and what it was asked to be.

    ``version_path`` is the version's folder, ``config_path`` the file the parameters were written in (it may not
    exist). ``artifact_name`` is ``default_model_filename`` if the configuration sets it. ``device`` is "cpu" or
    "cuda:N". ``instances`` sessions will be opened; each may use ``threads`` intra-op threads.

    ``config`` is the model's ModelConfig as JSON, in the schema's own field names: as declared for
    :meth:`Backend.complete`, as completed for :meth:`Backend.load`. So are ``buckets``, empty before.

    ``cache_path``, for :meth:`Backend.load` and what comes after, is a private folder: what the backend leaves there is
    there again, verified, when the same artifact is next loaded with the same configuration where
    :meth:`Backend.environment` is the same. None: there is no cache.
    """

    name: str
    version: int
    version_path: Path
    config_path: Path
    artifact_name: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    instances: int = 1
    threads: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    buckets: Buckets = Buckets()
    cache_path: Path | None = None

    def parse_parameters(self, schema: type[T]) -> T:
        """Parse ``parameters`` into the frozen dataclass ``schema``.

        Raises InvalidConfig naming file, key, value and what is allowed.
        """
        return parse_parameters(schema, self.parameters, where=f"{self.config_path}: parameters")

    def refuse(self, key: str, value: object, allowed: str) -> InvalidConfig:
        """The error for a parameter that parsed but cannot be."""
        return InvalidConfig(f"{self.config_path}: parameters: {key}: {value!r}: {allowed}")


@dataclass(frozen=True, slots=True)
class Instance:
    """One of a model version's sessions: ``ordinal`` counts from 0."""

    ordinal: int
    device: str
    threads: int


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a :class:`RequestSession` sees it, already held against the signature.

    ``rows`` is its size along the batch axis, 1 for a model that does not batch. Empty ``requested_outputs`` means all.
    """

    id: str
    inputs: Tensors
    rows: int
    requested_outputs: tuple[str, ...]
    parameters: Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True)
class Response:
    """A request's answer: at least the requested outputs (others are ignored), and parameters to send along."""

    outputs: Tensors
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


Outcome: TypeAlias = Response | ServingError


class Session:
    """One instance's ability to run the model. Belongs to one thread, which opened it.

    ``any_thread``: it may be run on other threads too, one at a time; then quick batches run where they were received.
    """

    any_thread: bool = False

    def close(self) -> None:
        """Free what this session alone holds. Called once, by the session's thread, after its last batch."""
        return


class TensorSession(Session, ABC):
    """A session for which the server collates, pads and splits."""

    def allocate(self, size: int) -> Array:
        """Make room for ``size`` bytes of input, as an array of uint8 that begins at a multiple of 64.

        The server keeps it, and puts batch after batch there: a session may have memory that its device reads faster.
        """
        return allocate_aligned(size)

    @abstractmethod
    def infer(self, inputs: Tensors) -> Tensors:
        """Run one batch: axis 0 of every array is the batch where the model batches.

        Inputs come in the signature's order, less optional ones that are not there.
        Inputs are C-contiguous, may be read-only, and stay as they are until the next call, as outputs must: these may
        be views of those. Outputs beyond the signature's are ignored. Raises ExecutionFailed with a text the client may
        see, or InvalidRequest for values that the client should not have sent; anything else counts as a defect of the
        backend, fails this batch, and is logged.
        """

    def infer_eagerly(self, inputs: Tensors) -> Tensors:
        """The same answer without anything compiled, for shapes outside every bucket; as :meth:`infer` otherwise.

        Only called where :attr:`Model.runs_eagerly`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not run eagerly")


class RequestSession(Session, ABC):
    """A session that sees requests whole. It is never run at warm-up unless the configuration gives samples."""

    @abstractmethod
    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """Answer each request: as many outcomes as requests, in their order.

        An outcome is the requested outputs (others are ignored), or an error for that one request.
        """


class Model(ABC):
    """A loaded model version on one device. Owns the weights, which its sessions share.

    ``specializes_on_shape``: each new batch size costs the engine a compilation or the like, so the server pads
    batches to buckets and warms each bucket. Otherwise batches run at their own size.

    ``runs_eagerly``: its sessions can run any shape without compiling, by :meth:`TensorSession.infer_eagerly`.

    Whatever it compiles or builds once its sessions are open, it states by
    :func:`preheat.compilations.report_compilation` on the thread that waited for it: the server warms until a full pass
    states nothing more, and counts what is stated later.
    """

    specializes_on_shape: bool = False
    runs_eagerly: bool = False

    def can_have(self, instances: int, threads: int) -> bool:
        """Whether it could have been loaded for so many ``instances`` on its device, of so many ``threads`` each.

        Then their number changes while it serves; else it is loaded once more, beside itself. Any thread.
        """
        del instances, threads
        return False

    @abstractmethod
    def open(self, instance: Instance) -> Session:
        """Open a session.

        Called on the thread that will own it; sessions may be opened from several threads at once.
        """

    def close(self) -> None:
        """Free the weights. Called once, after every session is closed."""
        return


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a backend found: its ``library`` with version, and the ``devices`` it can run on: "cpu", "cuda:0", ..."""

    library: str
    devices: tuple[str, ...]


class Backend(ABC):
    """A plugin. Stateless and cheap to make; made once per process, and called from several threads."""

    @abstractmethod
    def hardware(self) -> Hardware:
        """What it runs on here. May import the heavy library."""

    def environment(self, source: ModelSource) -> str | None:
        """What compiled code depends on beside artifact and configuration: versions, instruction set, GPU.

        None: this backend leaves nothing in :attr:`ModelSource.cache_path`, and is given none.
        """
        del source
        return None

    @abstractmethod
    def complete(self, source: ModelSource) -> PartialConfig:
        """Say what the artifact says of itself. Raises InvalidArtifact or InvalidConfig."""

    @abstractmethod
    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Load the artifact to serve ``signature``, which the server made of the configuration and :meth:`complete`.

        Raises InvalidArtifact, InvalidConfig or BackendMissing; other exceptions fail the load with their text and
        are logged.
        """
