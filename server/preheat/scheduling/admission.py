"""Holding a request against a model's signature, before it may wait.

Nothing unchecked reaches a backend: an engine that trusts its caller reads out of bounds on a wrong shape. Checks run
in the order in which Triton runs them, so that a request with several faults names the same one: outputs, number and
names of inputs, batch axis, datatype, shape, named dimensions, payload; and last, buckets, which Triton has not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from preheat.backend import Dimension, Signature, TensorSpec
from preheat.errors import InvalidRequest
from preheat.messages import InferRequest, InputTensor, Kind
from preheat.scheduling.padding import Padding
from preheat.scheduling.pending import Admitted, BatchKey
from preheat.scheduling.reshaping import Reshape
from preheat.tensors import Array, DataType, Loan, view_raw

# Whether a request is right is up to the values: of a BOOL, and the lengths in BYTES.
_LOOKED_INTO = frozenset({DataType.BOOL, DataType.BYTES})
# As many as the codec knows.
_MOST_PLANS = 1024
# Sizes beyond this cannot be real, and keep products within what numpy can count.
_MAX_ELEMENTS = 2**40


class _Plan(NamedTuple):
    """How requests of one kind become tensors, once one of them was admitted.

    ``views``, in the order of the signature: name, position among the request's inputs, shape, dtype, size in bytes.
    """

    views: tuple[tuple[str, int, tuple[int, ...], "np.dtype[Any]", int], ...]
    rows: int
    batch_key: BatchKey


class Gate:
    """Admits requests to one model version. Any thread may call it; ``_plans`` is what it has learned on the way."""

    def __init__(
        self, model: str, signature: Signature, *, padding: Padding, reshapes: Mapping[str, Reshape] | None = None
    ) -> None:
        """``signature`` is what clients see; inputs in ``reshapes`` are handed on in the model's shape."""
        self._model = model
        self._padding = padding
        self._signature = signature
        self._reshapes = reshapes or {}
        self._inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in signature.inputs}
        self._required = frozenset(spec.name for spec in signature.inputs if not spec.optional)
        self._outputs = frozenset(spec.name for spec in signature.outputs)
        self._ranks = {spec.name: len(spec.shape) + signature.batches for spec in signature.inputs}
        self._plans: dict[Kind, _Plan] = {}

    def admit(self, request: InferRequest) -> Admitted:
        """Check ``request`` and view its payloads as tensors.

        Raises InvalidRequest naming the tensor and what is expected.
        """
        plan = self._plans.get(request.kind) if request.kind is not None else None
        admitted = None if plan is None else _follow(plan, request.inputs)
        if admitted is None:
            admitted = self._check(request)
            if request.kind is not None:
                self._learn(request.kind, request.inputs, admitted)
        return admitted

    def _learn(self, kind: Kind, inputs: Sequence[InputTensor], admitted: Admitted) -> None:
        """Remember how ``kind`` is admitted, where nothing of that is up to the data."""
        given = {tensor.name: (position, tensor) for position, tensor in enumerate(inputs)}
        views = []
        for name in admitted.inputs:
            position, tensor = given[name]
            datatype = self._inputs[name].datatype
            if datatype in _LOOKED_INTO or name in self._reshapes:
                return
            size = math.prod(tensor.shape) * datatype.numpy.itemsize
            views.append((name, position, tensor.shape, datatype.numpy, size))
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[kind] = _Plan(tuple(views), admitted.rows, admitted.batch_key)

    def _check(self, request: InferRequest) -> Admitted:
        try:
            self._check_outputs(request.requested_outputs)
            self._check_names(request.inputs)
            rows = self._check_rows(request.inputs)
            for tensor in request.inputs:
                self._check_tensor(tensor)
            self._check_named_dimensions(request.inputs)
            tensors = [self._borrow(tensor, request.loans.get(tensor.name)) for tensor in request.inputs]
            given = {tensor.name: self._reshape(tensor.name, self._view(tensor)) for tensor in tensors}
            # Always in one order, that of the warm-up: compiled code may be found by it.
            inputs = {name: given[name] for name in self._inputs if name in given}
            self._padding.refuse_outside(self._model, inputs)
        except InvalidRequest as exc:
            raise InvalidRequest(f"[request id: {request.id or '<id_unknown>'}] {exc}") from exc.__cause__
        return Admitted(inputs, rows, self._padding.key(inputs))

    def _check_outputs(self, requested: Sequence[str]) -> None:
        for position, name in enumerate(requested):
            if name not in self._outputs:
                raise InvalidRequest(
                    f"unexpected inference output '{name}' for model '{self._model}'; it has {_listing(self._outputs)}"
                )
            if name in requested[:position]:
                raise InvalidRequest(f"output '{name}' already exists in request for model '{self._model}'")

    def _check_names(self, inputs: Sequence[InputTensor]) -> None:
        given = [tensor.name for tensor in inputs]
        least, most = len(self._required), len(self._inputs)
        if not least <= len(given) <= most:
            raise self._wrong_count(given)
        for position, name in enumerate(given):
            if name not in self._inputs:
                raise InvalidRequest(
                    f"unexpected inference input '{name}' for model '{self._model}'; it takes {_listing(self._inputs)}"
                )
            if name in given[:position]:
                raise InvalidRequest(f"input '{name}' already exists in request for model '{self._model}'")
        if not self._required.issubset(given):
            raise self._wrong_count(given)

    def _wrong_count(self, given: Sequence[str]) -> InvalidRequest:
        least, most = len(self._required), len(self._inputs)
        expected = str(most) if least == most else f"between {least} and {most}"
        missing = self._required.difference(given)
        problem = f", but missing required input(s) {_listing(missing)}" if missing else ""
        return InvalidRequest(
            f"expected {expected} inputs but got {len(given)} inputs for model '{self._model}'. "
            f"Got input(s) {_listing(given)}{problem}. The model takes {_listing(self._inputs)}."
        )

    def _check_rows(self, inputs: Sequence[InputTensor]) -> int:
        """The request's rows; the rank is checked here too, since the batch axis depends on it."""
        for tensor in inputs:
            if len(tensor.shape) != self._ranks[tensor.name] or any(size < 0 for size in tensor.shape):
                raise self._wrong_shape(tensor)
        if not self._signature.batches:
            return 1
        rows = inputs[0].shape[0] if inputs else 1
        for tensor in inputs:
            if tensor.shape[0] != rows:
                raise InvalidRequest(
                    f"input '{tensor.name}' batch size does not match other inputs for '{self._model}': "
                    f"{tensor.shape[0]} rows, but '{inputs[0].name}' has {rows}"
                )
        if not 1 <= rows <= self._signature.max_batch_size:
            raise InvalidRequest(
                f"inference request batch-size must be <= {self._signature.max_batch_size} for '{self._model}', "
                f"and at least 1: got {rows}"
            )
        return rows

    def _check_tensor(self, tensor: InputTensor) -> None:
        spec = self._inputs[tensor.name]
        if tensor.datatype != spec.datatype.value:
            raise InvalidRequest(
                f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{self._model}' expects "
                f"'{spec.datatype.value}'"
            )
        sizes = tensor.shape[1:] if self._signature.batches else tensor.shape
        # An empty tensor's other sizes count too: numpy cannot address them either.
        extent = math.prod(max(1, size) for size in tensor.shape)
        if not all(map(Dimension.allows, spec.shape, sizes)) or extent > _MAX_ELEMENTS:
            raise self._wrong_shape(tensor)

    def _check_named_dimensions(self, inputs: Sequence[InputTensor]) -> None:
        """Axes of one name must agree across the inputs of a request."""
        seen: dict[str, tuple[int, str]] = {}
        skip = int(self._signature.batches)
        for tensor in inputs:
            for dimension, size in zip(self._inputs[tensor.name].shape, tensor.shape[skip:], strict=True):
                if dimension.name is None:
                    continue
                first_size, first_name = seen.setdefault(dimension.name, (size, tensor.name))
                if size != first_size:
                    raise InvalidRequest(
                        f"inputs '{first_name}' and '{tensor.name}' for model '{self._model}' must agree in dimension "
                        f"'{dimension.name}', but have {first_size} and {size}"
                    )

    def _view(self, tensor: InputTensor) -> Array:
        if not isinstance(tensor.data, bytes | memoryview):
            count = math.prod(tensor.shape)
            if tensor.data.size != count:
                raise InvalidRequest(
                    f"unexpected number of elements for input '{tensor.name}' for model '{self._model}'. "
                    f"Expected {count}, got {tensor.data.size}"
                )
            return tensor.data.reshape(tensor.shape)
        try:
            return view_raw(self._inputs[tensor.name].datatype, tensor.shape, tensor.data)
        except ValueError as exc:
            raise self._wrong_size(tensor, str(exc)) from exc

    def _borrow(self, tensor: InputTensor, loan: Loan | None) -> InputTensor:
        """Copy what is lent, once it is known to be as large as it should be where that can be told beforehand."""
        if loan is None:
            return tensor
        datatype = self._inputs[tensor.name].datatype
        expected = None if datatype is DataType.BYTES else math.prod(tensor.shape) * datatype.numpy.itemsize
        if expected not in (None, loan.size):
            raise self._wrong_size(tensor, f"expected {expected} bytes, got {loan.size}")
        return tensor._replace(data=loan.copy())

    def _wrong_size(self, tensor: InputTensor, problem: str) -> InvalidRequest:
        return InvalidRequest(
            f"input byte size mismatch for input '{tensor.name}' for model '{self._model}' of shape "
            f"{list(tensor.shape)}: {problem}"
        )

    def _reshape(self, name: str, array: Array) -> Array:
        reshape = self._reshapes.get(name)
        return array if reshape is None else reshape.to_model(array, batched=self._signature.batches)

    def _wrong_shape(self, tensor: InputTensor) -> InvalidRequest:
        spec = self._inputs[tensor.name]
        sizes = [-1 if dimension.size is None else dimension.size for dimension in spec.shape]
        bounds = ", ".join(str(dimension) for dimension in spec.shape if dimension.size is None)
        note = ""
        if self._signature.batches:
            sizes.insert(0, -1)
            note = f" NOTE: the first dimension is the batch, 1 to {self._signature.max_batch_size} rows."
        return InvalidRequest(
            f"unexpected shape for input '{tensor.name}' for model '{self._model}'. Expected {_shape(sizes)}"
            f"{f' with {bounds}' if bounds else ''}, got {_shape(tensor.shape)}.{note}"
        )


def _follow(plan: _Plan, inputs: Sequence[InputTensor]) -> Admitted | None:
    """Admit a request as one of its kind was; None for data of the wrong size."""
    views = {}
    for name, position, shape, dtype, size in plan.views:
        data = inputs[position].data
        if len(data) != size:
            return None
        views[name] = np.frombuffer(data, dtype).reshape(shape)
    return Admitted(views, plan.rows, plan.batch_key)


def _shape(sizes: Sequence[int]) -> str:
    return f"[{','.join(map(str, sizes))}]"


def _listing(names: Mapping[str, object] | Sequence[str] | frozenset[str]) -> str:
    return str(sorted(names))
