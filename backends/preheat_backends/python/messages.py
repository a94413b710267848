"""``pb_utils.InferenceRequest`` and ``pb_utils.InferenceResponse``: what goes into a model and what comes back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from preheat.backend import Outcome, Request, Response
from preheat.errors import ExecutionFailed
from preheat.tensors import Array, DataType
from preheat_backends.python.datatypes import as_bytes
from preheat_backends.python.errors import TritonError, describe, require, unsupported
from preheat_backends.python.tensor import Tensor

Parameter: TypeAlias = bool | int | float | str

TRITONSERVER_MEMORY_CPU = 0
TRITONSERVER_MEMORY_GPU = 2
TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

# Parameters of the protocol that Triton hands over by methods of their own, or not at all.
_RESERVED = frozenset({"sequence_id", "sequence_start", "sequence_end", "priority", "timeout"})
_MODEL_CALLS = "calling other models from Python (InferenceRequest, exec, async_exec)"


@dataclass(frozen=True, slots=True)
class PreferredMemory:
    """Where a model would like the outputs of a model that it calls."""

    preferred_memory_type: int
    preferred_device_id: int = 0


class InferenceTrace:
    """A request's trace. Requests are not traced."""

    def get_context(self) -> None:
        """The trace's context: none."""
        return


class InferenceRequest:
    """What a model makes in order to call another model, which it cannot here: making one raises Unsupported."""

    def __init__(self, *_: object, **__: object) -> None:
        raise unsupported(_MODEL_CALLS)


class ReceivedRequest(InferenceRequest):
    """A request as a model sees it. ``outputs`` are all outputs that the model has."""

    def __init__(self, request: Request, *, outputs: Iterable[str]) -> None:
        parameters = request.parameters
        self._request_id = request.id
        self._inputs = [Tensor.received(name, array) for name, array in request.inputs.items()]
        self._requested_output_names = set(request.requested_outputs or outputs)
        self._correlation_id = _number_or_text(parameters.get("sequence_id", 0))
        self._flags = _flags(parameters)
        self._timeout = _number(parameters.get("timeout", 0))
        self._parameters = {key: value for key, value in parameters.items() if key not in _RESERVED}

    def inputs(self) -> list[Tensor]:
        """The inputs that the client sent."""
        return self._inputs

    def request_id(self) -> str:
        """The client's id for the request, empty if it gave none."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """The client's id for the sequence the request belongs to, 0 for none."""
        return self._correlation_id

    def flags(self) -> int:
        """Whether the request starts or ends a sequence: TRITONSERVER_REQUEST_FLAG_SEQUENCE_START and _END."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Replace :meth:`flags`."""
        self._flags = flags

    def timeout(self) -> int:
        """The client's parameter ``timeout`` in microseconds, 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """The client's other parameters, as JSON."""
        return json.dumps(self._parameters)

    def requested_output_names(self) -> set[str]:
        """The outputs that the client wants: all of the model's, if it named none."""
        return self._requested_output_names

    def is_cancelled(self) -> bool:
        """False: who leaves before the model starts is never executed, and who leaves later is answered without it."""
        return False

    def trace(self) -> InferenceTrace:
        """The request's trace."""
        return InferenceTrace()

    def set_release_flags(self, flags: int) -> None:
        """Do nothing. Raises Unsupported for flags that ask to have the request executed again."""
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            raise unsupported("executing a request again (InferenceRequest.set_release_flags)")

    def get_response_sender(self) -> NoReturn:
        """Raise Unsupported."""
        raise unsupported(
            "decoupled models (InferenceRequest.get_response_sender); every request gets exactly one response"
        )

    def exec(self, decoupled: bool = False) -> NoReturn:  # noqa: ARG002, FBT001, FBT002 - Triton's signature
        """Raise Unsupported."""
        raise unsupported(_MODEL_CALLS)

    def async_exec(self, decoupled: bool = False) -> NoReturn:  # noqa: ARG002, FBT001, FBT002 - Triton's signature
        """Raise Unsupported."""
        raise unsupported(_MODEL_CALLS)


class InferenceResponse:
    """A model's answer to one request: output tensors, or an error in their place."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        self._output_tensors = list(output_tensors)
        self._error = error
        self._parameters = dict(parameters or {})
        for tensor in self._output_tensors:
            require(tensor, Tensor, "InferenceResponse: each of output_tensors")
        require(error, TritonError | None, "InferenceResponse: error")
        for key, value in self._parameters.items():
            require(key, str, "InferenceResponse: a key of parameters")
            require(value, Parameter, f"InferenceResponse: parameter {key!r}")

    def output_tensors(self) -> list[Tensor]:
        """The outputs."""
        return self._output_tensors

    def has_error(self) -> bool:
        """Whether this is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error, if it is one."""
        return self._error

    def parameters(self) -> str:
        """What is sent along with the outputs, as JSON."""
        return json.dumps(self._parameters)

    def as_outcome(self, outputs: Mapping[str, DataType]) -> Outcome:
        """The server's view of it. ``outputs`` are the model's; tensors of other names are left out."""
        if self._error is not None:
            return self._error.as_serving_error()
        arrays = {}
        for tensor in self._output_tensors:
            name = tensor.name()
            if name in outputs:
                try:
                    arrays[name] = _as_declared(tensor.as_numpy(), outputs[name])
                except UnicodeEncodeError as exc:
                    return ExecutionFailed(f"output '{name}': {describe(exc)}")
        return Response(arrays, self._parameters)


def _as_declared(array: Array, datatype: DataType) -> Array:
    """``array`` with text as bytes. That an output is of another datatype than declared is for the server to say."""
    is_text = DataType.of(array.dtype) is DataType.BYTES
    return as_bytes(array) if is_text and datatype is DataType.BYTES else array


def _flags(parameters: Mapping[str, Parameter]) -> int:
    start = TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if parameters.get("sequence_start") is True else 0
    end = TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if parameters.get("sequence_end") is True else 0
    return start | end


# A client may send a parameter of any type under any name: what makes no sense is ignored, it must not fail the batch.


def _number(value: Parameter) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _number_or_text(value: Parameter) -> int | str:
    return value if isinstance(value, int | str) else 0
