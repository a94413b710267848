"""The backend that answers with what it was asked, and misbehaves on order.

It is the test double of the server's own tests, a stand-in for trying a configuration before the model exists, and the
example of how to write a backend. The parts every backend has, in the order they are called:

1. ``Parameters``: what ``parameters {}`` of a configuration may say to this backend. An unknown key or a bad value is
   refused by ``source.parse_parameters`` with a text that names file, key and what is allowed.
2. ``Backend.complete``: what the artifact says of itself. A double has no artifact, so the configuration must declare
   its tensors.
3. ``Backend.load``: check everything that can be checked before a request comes, then build the ``Model``.
4. ``Model.open``: one ``Session`` for each instance, made on the thread that will use it and never leaves it.
5. ``TensorSession.infer``, or ``RequestSession.execute`` for a model that must see its requests one by one.
"""

import enum
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preheat.backend import (
    Backend,
    Hardware,
    Instance,
    Model,
    ModelSource,
    Outcome,
    PartialConfig,
    Request,
    RequestSession,
    Response,
    Session,
    Signature,
    TensorSession,
)
from preheat.errors import BackendMissing, ExecutionFailed, InvalidArtifact, InvalidConfig, ServingError
from preheat.tensors import Array, DataType, Tensors


class Behavior(enum.Enum):
    """What the double does on the executions that ``every`` picks. On all others it is IDENTITY."""

    IDENTITY = "identity"
    FAIL = "fail"
    HANG = "hang"
    FEW_ROWS = "few_rows"
    WRONG_DTYPE = "wrong_dtype"
    CRASH = "crash"
    FAIL_LOAD = "fail_load"


@dataclass(frozen=True, slots=True)
class Parameters:
    """How the double behaves.

    An execution is one batch, or with ``requests`` one request; each session counts its own from 1 and misbehaves on
    every ``every``-th. ``seconds`` is how long each execution takes; for HANG, how long it hangs, 0 meaning for ever.
    """

    behavior: Behavior = Behavior.IDENTITY
    every: int = 1
    seconds: float = 0.0
    requests: bool = False
    specializes_on_shape: bool = False


class DoubleBackend(Backend):
    """Answers each input back as the output at the same position."""

    def hardware(self) -> Hardware:
        """numpy, on the host's processor."""
        return Hardware(library=f"numpy {np.__version__}", devices=("cpu",))

    def complete(self, source: ModelSource) -> PartialConfig:
        """Nothing: there is no artifact to ask. Parameters are refused here already, before anything is loaded."""
        return PartialConfig(whole_requests=_parse(source).requests)

    def load(self, source: ModelSource, signature: Signature) -> Model:
        """Check that ``signature`` can be echoed, and make the model."""
        parameters = _parse(source)
        if source.device != "cpu":
            raise BackendMissing(f"the backend 'double' runs on cpu only; {source.name} asks for {source.device}")
        if parameters.behavior is Behavior.FAIL_LOAD:
            raise InvalidArtifact(f"{source.config_path}: the double was told to fail its load")
        _check_echo(source, signature)
        return DoubleModel(parameters, signature)


class DoubleModel(Model):
    """A signature and what to do with it. Immutable but for ``_closed``, so every session may share it."""

    def __init__(self, parameters: Parameters, signature: Signature) -> None:
        self.specializes_on_shape = parameters.specializes_on_shape
        self._parameters = parameters
        self._signature = signature
        self._closed = threading.Event()

    def can_have(self, instances: int, threads: int) -> bool:  # noqa: ARG002 - any number
        """Sessions share nothing but what never changes."""
        return True

    def open(self, instance: Instance) -> Session:  # noqa: ARG002 - a real backend takes its device and threads from it
        """Open a session that counts its own executions."""
        echo = _Echo(self._parameters, self._signature, self._closed)
        return DoubleRequestSession(echo) if self._parameters.requests else DoubleTensorSession(echo)

    def close(self) -> None:
        """End every wait still going on, so that a session given up while it hung lets its thread go."""
        self._closed.set()


class DoubleTensorSession(TensorSession):
    """Sees batches. Keeps nothing by thread."""

    any_thread = True

    def __init__(self, echo: "_Echo") -> None:
        self._echo = echo

    def infer(self, inputs: Tensors) -> Tensors:
        """Echo one batch."""
        return self._echo.run(inputs)


class DoubleRequestSession(RequestSession):
    """Sees requests. Belongs to the thread that opened it."""

    def __init__(self, echo: "_Echo") -> None:
        self._echo = echo

    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """Echo each request; one that fails fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Outcome:
        try:
            outputs = self._echo.run(request.inputs)
        except ServingError as error:
            return error
        return Response(outputs)


class _Echo:
    """One session's executions, counted. Belongs to whoever runs the session."""

    def __init__(self, parameters: Parameters, signature: Signature, closed: threading.Event) -> None:
        self._parameters = parameters
        self._signature = signature
        self._closed = closed
        self._executions = 0

    def run(self, inputs: Tensors) -> dict[str, Array]:
        self._executions += 1
        turn = self._executions % self._parameters.every == 0
        behavior = self._parameters.behavior if turn else Behavior.IDENTITY
        self._take_time(behavior)
        if behavior is Behavior.FAIL:
            # What a backend raises when the model fails: the caller gets this text.
            raise ExecutionFailed("the double was told to fail")
        if behavior is Behavior.CRASH:
            # What a backend must not raise: anything else is a defect, and the caller learns only that there was one.
            raise RuntimeError("the double was told to crash")
        return {
            output.name: _spoil(inputs[input_.name], behavior)
            for input_, output in zip(self._signature.inputs, self._signature.outputs, strict=True)
        }

    def _take_time(self, behavior: Behavior) -> None:
        seconds = self._parameters.seconds
        if behavior is Behavior.HANG:
            self._closed.wait(seconds or None)
        elif seconds and self._parameters.behavior is not Behavior.HANG:
            self._closed.wait(seconds)


def _spoil(array: Array, behavior: Behavior) -> Array:
    """The answer to ``array``: itself, for inputs stay as they are until their answers have left."""
    if behavior is Behavior.FEW_ROWS:
        return array[:-1].copy()
    if behavior is Behavior.WRONG_DTYPE:
        wrong = DataType.FP32 if array.dtype == DataType.FP64.numpy else DataType.FP64
        return np.zeros(array.shape, wrong.numpy)
    return array


def _parse(source: ModelSource) -> Parameters:
    parameters = source.parse_parameters(Parameters)
    if parameters.every < 1:
        raise source.refuse("every", parameters.every, "must be at least 1")
    if not 0 <= parameters.seconds <= threading.TIMEOUT_MAX:
        raise source.refuse("seconds", parameters.seconds, f"must be from 0 to {threading.TIMEOUT_MAX:.0f}")
    return parameters


def _check_echo(source: ModelSource, signature: Signature) -> None:
    """Raise InvalidConfig unless each output is declared as the input at its position."""
    inputs, outputs = signature.inputs, signature.outputs
    if len(inputs) != len(outputs):
        raise InvalidConfig(
            f"{source.config_path}: {len(inputs)} inputs and {len(outputs)} outputs: the backend 'double' answers each "
            "input back, so there must be as many outputs as inputs"
        )
    for input_, output in zip(inputs, outputs, strict=True):
        sizes = [[axis.size for axis in spec.shape] for spec in (input_, output)]
        if input_.datatype is not output.datatype or sizes[0] != sizes[1]:
            raise InvalidConfig(
                f"{source.config_path}: output {output.name!r}: the backend 'double' answers input {input_.name!r} "
                f"back, so it must be declared {input_.datatype.value} [{', '.join(map(str, input_.shape))}]"
            )
        if input_.optional:
            raise InvalidConfig(
                f"{source.config_path}: input {input_.name!r}: optional: the backend 'double' answers every input "
                "back, so none may be optional"
            )
