"""What crosses between a transport and the engine: requests, answers and metadata, free of any wire format.

What is made for every request is a NamedTuple, at a third of what a frozen dataclass costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from preheat.tensors import Array, Buffer, DataType, Loan

Parameter: TypeAlias = bool | int | float | str
NO_PARAMETERS: Mapping[str, Parameter] = MappingProxyType({})


class Place(NamedTuple):
    """Bytes in a shared-memory region that a client has registered."""

    region: str
    offset: int
    size: int


class InputTensor(NamedTuple):
    """An input as the client sent it, not yet held against a signature.

    ``data`` is the raw payload in the binary tensor format (see :func:`preheat.tensors.from_raw`), or a flat array
    where the client used typed contents. Raw payloads may be views of the wire bytes, or of memory that is shared.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer | Array


NO_PLACES: Mapping[str, Place] = MappingProxyType({})
NO_LOANS: Mapping[str, Loan] = MappingProxyType({})


class Kind:
    """What requests have in common that differ in nothing but id, deadline and the bytes of raw inputs; by identity."""

    __slots__ = ()


class InferRequest(NamedTuple):
    """One inference request, decoded but not yet held against a model's signature.

    Empty ``version``: the newest that is READY. Empty ``requested_outputs``: all of them. ``deadline_s`` is on the
    clock of ``time.monotonic``. ``payload_bytes`` is what the request's tensors hold in memory while it lives. ``kind``
    None: it is not known whether there was one like it before. ``sources`` says of the inputs, by position, whose data
    is empty here where it lies, and ``places`` of outputs, by name, where they are to go instead of into the answer.
    ``loans`` are inputs, by name, whose data is empty here and has to be copied first.
    """

    model: str
    version: str
    id: str
    inputs: tuple[InputTensor, ...]
    requested_outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = NO_PARAMETERS
    deadline_s: float | None = None
    payload_bytes: int = 0
    kind: Kind | None = None
    sources: tuple[tuple[int, Place], ...] = ()
    places: Mapping[str, Place] = NO_PLACES
    loans: Mapping[str, Loan] = NO_LOANS


class OutputTensor(NamedTuple):
    """One output of an answer. ``placed``: the client has it already, where it wanted it."""

    name: str
    datatype: DataType
    array: Array
    placed: bool = False


class InferResponse(NamedTuple):
    """One answer: ``version`` is the version that computed it, also when the request named none."""

    model: str
    version: str
    id: str
    outputs: tuple[OutputTensor, ...]
    parameters: Mapping[str, Parameter] = NO_PARAMETERS


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name, version and the protocol extensions this server really has."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output as clients see it.

    ``shape`` is whole, -1 where it may vary, first the batch if the model batches.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DurationStatistic:
    """How often something happened, and the seconds it took in all."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The executions of one batch size, in rows."""

    rows: int
    compute_input: DurationStatistic
    compute_infer: DurationStatistic
    compute_output: DurationStatistic


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """A model version's statistics as clients see them.

    ``durations`` by the names that InferStatistics has for them.
    """

    name: str
    version: str
    last_inference_ms: int
    inferences: int
    executions: int
    durations: Mapping[str, DurationStatistic]
    batches: tuple[BatchStatistics, ...]


@dataclass(frozen=True, slots=True)
class ModelIndexEntry:
    """A row of the repository's index. Only ``name`` is set for a model that was never tried."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model as clients see it; ``versions`` are the READY ones, or just the one asked for."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class VersionReport:
    """A model version as an operator sees it; ``version`` None: the model could not be tried, or was not yet.

    ``load_s`` is from LOADING to READY, of which the slowest instance's warm-up took ``warmup_s``; ``memory_bytes`` is
    by how much the process grew meanwhile. ``requests`` were answered, ``failures`` got an error, since the server
    started. ``note`` says what is worth knowing of one that serves.
    """

    model: str
    version: int | None
    state: str
    reason: str = ""
    backend: str = ""
    buckets: str = ""
    load_s: float | None = None
    warmup_s: float | None = None
    memory_bytes: int | None = None
    requests: int = 0
    failures: int = 0
    note: str = ""
