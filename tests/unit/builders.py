"""What the unit tests are made of: real requests, signatures and sessions, each in the fewest words."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from preheat.backend import (
    Backend,
    Buckets,
    Dimension,
    Hardware,
    Instance,
    Model,
    ModelSource,
    PartialConfig,
    Session,
    Signature,
    TensorSession,
    TensorSpec,
)
from preheat.engine import Control, Engine
from preheat.memory.staging import allocate_aligned
from preheat.messages import InferRequest, InputTensor
from preheat.models.departures import Departures
from preheat.models.lifecycle import Lifecycle
from preheat.models.loader import Loader, LoadLimits
from preheat.models.manager import ModelManager
from preheat.models.registry import Registry
from preheat.models.swapping import Swapper
from preheat.repository.scan import ModelFolder, read_model
from preheat.scheduling.padding import Padding
from preheat.scheduling.pending import Admitted, Answer, BatchKey, Pending, Reply
from preheat.scheduling.queue_policy import Standing
from preheat.telemetry.events import Event, Observer
from preheat.telemetry.statistics import Statistics
from preheat.tensors import Array, DataType, Tensors, to_raw

# No test waits this long: a gate that stays shut fails its test instead of hanging the run.
PATIENCE_S = 20.0

EventT = TypeVar("EventT")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def spec(name: str, *dims: int | Dimension, datatype: DataType = DataType.FP32, optional: bool = False) -> TensorSpec:
    """A tensor; -1 is an axis of any size."""
    shape = tuple(dim if isinstance(dim, Dimension) else axis(dim) for dim in dims)
    return TensorSpec(name, datatype, shape, optional)


def axis(size: int) -> Dimension:
    return Dimension() if size == -1 else Dimension.fixed(size)


def echo_signature(*dims: int | Dimension, max_batch_size: int = 8, datatype: DataType = DataType.FP32) -> Signature:
    """One input ``x``, one output ``y`` like it."""
    dims = dims or (2,)
    return Signature((spec("x", *dims, datatype=datatype),), (spec("y", *dims, datatype=datatype),), max_batch_size)


def unpadded(signature: Signature, *, rows: Sequence[int] = ()) -> Padding:
    """Padding that leaves every size as it is, and batches too without ``rows``."""
    return Padding(signature, Buckets(tuple(rows)), {})


def aligned(array: Array) -> Array:
    """A copy of ``array`` where every engine can read it."""
    room = allocate_aligned(array.nbytes).view(array.dtype).reshape(array.shape)
    room[...] = array
    return room


def tensor(name: str, array: Array) -> InputTensor:
    """``array`` as a client sends it: raw."""
    return InputTensor(name, DataType.of(array.dtype).value, array.shape, to_raw(array))


def request(
    *inputs: InputTensor,
    model: str = "m",
    version: str = "",
    identity: str = "",
    outputs: Sequence[str] = (),
    payload_bytes: int = 0,
    deadline_s: float | None = None,
) -> InferRequest:
    return InferRequest(
        model, version, identity, inputs, tuple(outputs), deadline_s=deadline_s, payload_bytes=payload_bytes
    )


class Replies:
    """A reply that remembers its answers, and lets a test wait for the first. Any thread."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._given = threading.Event()

    def __call__(self, answer: Answer) -> Answer:
        self.answers.append(answer)
        self._given.set()
        return answer

    def wait(self) -> Answer:
        """The answer, once it is there; that there is no second one is checked as well."""
        assert self._given.wait(PATIENCE_S), "no answer came"
        (answer,) = self.answers
        return answer


class Events:
    """An observer that remembers. Any thread."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self._news = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._news:
            self.seen.append(event)
            self._news.notify_all()

    def wait_for(self, kind: type[EventT]) -> EventT:
        """The first of its kind, now or later."""
        with self._news:
            assert self._news.wait_for(lambda: self.of(kind), PATIENCE_S), self.seen
            return self.of(kind)[0]

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.seen if isinstance(event, kind)]


def settle_nothing(_: Pending, __: Answer) -> None:
    """For a request that no model version keeps account of."""


def pending(
    *,
    rows: int = 1,
    key: str = "",
    arrived_s: float = 0.0,
    expires_s: float | None = None,
    standing: Standing | None = None,
    payload_bytes: int = 0,
    identity: str = "",
    reply: Reply | None = None,
) -> Pending:
    """An admitted request without tensors; ``key`` stands for the shapes that decide who shares its batch."""
    return Pending(
        request(payload_bytes=payload_bytes, identity=identity),
        reply or Replies(),
        admitted=Admitted({}, rows, ((key, ()),)),
        arrived_s=arrived_s,
        standing=standing or Standing(expires_s=expires_s),
        settle=settle_nothing,
    )


def carrying(
    inputs: Tensors,
    reply: Reply,
    *,
    outputs: Sequence[str] = (),
    identity: str = "",
    key: BatchKey | None = None,
    deadline_s: float | None = None,
) -> Pending:
    """An admitted request with tensors, whose first axis is the batch; ``key`` None pads them to no other shape."""
    own = tuple(sorted((name, array.shape[1:]) for name, array in inputs.items()))
    return Pending(
        request(outputs=outputs, identity=identity, deadline_s=deadline_s),
        reply,
        admitted=Admitted(inputs, next(iter(inputs.values())).shape[0], own if key is None else key),
        arrived_s=0.0,
        standing=Standing(),
        settle=settle_nothing,
    )


def rows_of(*values: float) -> Array:
    """Rows of two equal numbers, which tell one request's rows from another's."""
    return np.array([[value, value] for value in values], np.float32)


def raise_(error: BaseException) -> None:
    raise error


class Recorded(TensorSession):
    """A session that negates; made by :class:`Recording`, which says what it does on the way."""

    def __init__(self, model: "Recording") -> None:
        self._model = model

    def infer(self, inputs: Tensors) -> Tensors:
        self._model.note(f"infer {len(inputs['x'])}")
        self._model.do(inputs["x"])
        return {self._model.output: self._model.answer(inputs["x"])}

    def close(self) -> None:
        self._model.note("close session")
        self._model.at_close()


class Recording(Model):
    """A model that notes what is called and on which thread, and does what a test tells it to.

    ``do`` is called with each batch, ``at_open`` and ``at_close`` as a session is opened and closed. ``resizes``: it
    can have any number of instances. ``answer`` makes ``output`` of ``x``.
    """

    def __init__(
        self,
        *,
        do: Callable[[Array], object] = lambda _: None,
        at_open: Callable[[Instance], object] = lambda _: None,
        at_close: Callable[[], object] = lambda: None,
        specializes_on_shape: bool = False,
        resizes: bool = False,
        answer: Callable[[Array], Array] = np.negative,
        output: str = "y",
    ) -> None:
        self.output = output
        self.resizes = resizes
        self.answer = answer
        self.calls: list[tuple[str, int]] = []
        self.instances: list[Instance] = []
        self.do = do
        self.at_open = at_open
        self.at_close = at_close
        self.specializes_on_shape = specializes_on_shape

    def can_have(self, instances: int, threads: int) -> bool:
        self.note(f"can have {instances} of {threads} threads")
        return self.resizes

    def open(self, instance: Instance) -> Session:
        self.note("open")
        self.instances.append(instance)
        self.at_open(instance)
        return Recorded(self)

    def close(self) -> None:
        self.note("close model")

    def note(self, name: str) -> None:
        self.calls.append((name, threading.get_ident()))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class Clock:
    """Stands in for the time module where threads are paced.

    Only what a test says is work takes time, and the sleeps of its thread.
    """

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []
        self._thread = threading.get_ident()

    def perf_counter(self) -> float:
        return self.now_s

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() == self._thread:
            self.pauses.append(seconds)
            self.now_s += seconds

    def work(self, seconds: float = 0.01) -> None:
        """So much passes, of which the interpreter tells when this returns."""
        self.now_s += seconds


class Gate:
    """Holds a batch that contains ``value`` inside its session until it is opened."""

    def __init__(self, value: float = 7) -> None:
        self._value = value
        self._entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, batch: Array) -> None:
        if (batch == self._value).any():
            self._entered.set()
            assert self._open.wait(PATIENCE_S)

    def await_entered(self) -> None:
        """Return when a batch is held."""
        assert self._entered.wait(PATIENCE_S)

    def open(self) -> None:
        self._open.set()


class PlannedBackend(Backend):
    """A backend whose models a test makes: ``make`` is called by ``load``."""

    def __init__(
        self,
        make: Callable[[ModelSource], Model],
        *,
        artifact: PartialConfig | None = None,
        devices: tuple[str, ...] = ("cpu",),
    ) -> None:
        self._make = make
        self._artifact = artifact or PartialConfig()
        self._devices = devices

    def hardware(self) -> Hardware:
        return Hardware("none", self._devices)

    def complete(self, source: ModelSource) -> PartialConfig:  # noqa: ARG002 - the same for every source
        return self._artifact

    def load(self, source: ModelSource, signature: Signature) -> Model:  # noqa: ARG002 - the test knows it
        return self._make(source)


ECHO_CONFIG = """
backend: "planned"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
"""


def write_model(
    repository: Path, name: str = "m", *, config: str | None = ECHO_CONFIG, versions: Sequence[int] = (1,)
) -> Path:
    """A model's folder with its configuration and a folder for each of ``versions``."""
    folder = repository / name
    folder.mkdir(parents=True)
    for version in versions:
        (folder / str(version)).mkdir()
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


def model_folder(
    repository: Path, name: str = "m", *, config: str = ECHO_CONFIG, versions: Sequence[int] = (1,)
) -> ModelFolder:
    """As :func:`write_model`, then read."""
    model = read_model(write_model(repository, name, config=config, versions=versions))
    assert isinstance(model, ModelFolder), model.reason
    return model


def loader_of(backend: Backend, *, events: Events | None = None, max_queue_requests: int = 100) -> Loader:
    """A loader that has ``backend`` for whatever is asked for, and 4 cores."""
    limits = LoadLimits(max_queue_requests, max_queue_bytes=10**6, cores=4)
    return Loader(lambda _: backend, limits=limits, observer=events or Events())


def background(call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Future[Result]:
    """Call on a thread of its own, one that does not outlive the run if it hangs."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future


def threads() -> set[threading.Thread]:
    """The threads that run now."""
    return set(threading.enumerate())


def parameters_text(values: Mapping[str, str]) -> str:
    """``values`` as the ``parameters`` of a config.pbtxt."""
    return "".join(f'\nparameters {{ key: "{key}" value {{ string_value: "{values[key]}" }} }}' for key in values)


def life(version: int = 1, model: str = "m") -> Lifecycle:
    """The life of a version that nobody watches."""
    return Lifecycle(model, version, observer=lambda _: None)


def engine_over(
    registry: Registry, loader: Loader, *repositories: Path, name: str = "cats", control: bool = False
) -> Engine:
    """An engine over ``registry``, whose manager loads with ``loader``; ``control`` allows clients to."""
    manager = manager_of(registry, loader, *repositories)
    allowed = Control.EXPLICIT if control else Control.NONE
    return Engine(registry, manager, Statistics(), name=name, control=allowed)


def manager_of(
    registry: Registry,
    loader: Loader,
    *repositories: Path,
    concurrency: int = 1,
    keep_s: float = 0.0,
    observer: Observer = lambda _: None,
) -> ModelManager:
    """A manager of what is in ``repositories``, which keeps what was replaced for ``keep_s``."""
    departures = Departures(registry, observer=observer)
    swapper = Swapper(registry, loader, departures, keep_s=keep_s, observer=observer)
    return ModelManager(
        registry, swapper, departures, repositories=repositories, concurrency=concurrency, observer=observer
    )
