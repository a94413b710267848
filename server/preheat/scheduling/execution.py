"""Executing one batch: collate, infer, check, cut, answer."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from preheat.backend import Outside, Request, RequestSession, Response, Session, Signature, TensorSession
from preheat.compilations import Compilation, CompilationKind, report_compilation
from preheat.errors import DeadlineExceeded, ExecutionFailed, InternalError, RequestTimeout, ServingError
from preheat.memory.staging import Staging
from preheat.messages import NO_PARAMETERS, InferResponse, OutputTensor, Parameter
from preheat.scheduling.output_check import OutputCheck
from preheat.scheduling.padding import Padding
from preheat.scheduling.pending import Answer, BatchKey, Pending
from preheat.scheduling.reshaping import Reshape
from preheat.scheduling.warmup import WarmupBatch
from preheat.telemetry.events import BatchExecuted, Observer
from preheat.tensors import Array, Tensors

log = logging.getLogger(__name__)


class _Stages(NamedTuple):
    """When the stages of one batch ended, on the executor's clock."""

    collated_s: float
    inferred_s: float


class Executor:
    """Runs batches of one model version on whichever instance's session it is given.

    Whoever runs an instance calls the same executor, which keeps nothing but each thread's staging. ``outside`` says
    how a batch runs whose shape is outside every bucket.
    """

    def __init__(
        self,
        model: str,
        version: int,
        *,
        signature: Signature,
        padding: Padding,
        outside: Outside = Outside.REFUSE,
        observer: Observer,
        reshapes: Mapping[str, Reshape] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reshapes = reshapes or {}
        self._model = model
        self._version = version
        self._version_text = str(version)
        self._signature = signature
        self._padding = padding
        self._outside = outside
        self._observer = observer
        self._clock = clock
        self._check = OutputCheck(model, signature)
        self._staging = Staging()
        self._output_types = {spec.name: spec.datatype for spec in signature.outputs}

    def execute(self, session: Session, batch: Sequence[Pending]) -> None:
        """Run ``batch`` and answer each of its requests. Never raises: a failure is the answer of this batch alone."""
        live = [pending for pending in batch if not pending.answered]
        if not live:
            return
        try:
            self._run_and_answer(session, live)
        except ServingError as exc:
            self._fail(session, live, exc)
        except BaseException:  # a model that calls sys.exit() or cancels must not end its instance's thread
            log.exception("model '%s' version %d: executing a batch failed", self._model, self._version)
            self._fail(session, live, InternalError())

    def refuse_expired(self, pending: Pending) -> None:
        """Answer a request whose time ran out in the queue: what its model's policy gave it, or its caller."""
        deadline_s = pending.request.deadline_s
        if deadline_s is not None and deadline_s <= self._clock():
            pending.answer(DeadlineExceeded("the call's deadline passed while it waited for the model"))
        else:
            pending.answer(RequestTimeout("Request timeout expired"))

    def warm(self, session: Session, batch: WarmupBatch) -> None:
        """Run one warm-up batch on the path of real ones; raises what the session raises."""
        if isinstance(session, RequestSession):
            skip = int(self._signature.batches)
            requests = [Request("warm-up", part, _rows(part) if skip else 1, (), {}) for part in batch.parts]
            for outcome in session.execute(requests):
                if isinstance(outcome, ServingError):
                    raise outcome
            return
        rows = len(batch.parts) if self._signature.batches else None
        key = self._padding.key(batch.parts[0]) if batch.key is None else batch.key
        self._infer(session, batch.parts, rows, key)

    def _run_and_answer(self, session: Session, live: Sequence[Pending]) -> None:
        started_s = self._clock()
        answers, stages = self._run(session, live)
        for pending in live:
            pending.compute_s = stages.inferred_s - stages.collated_s
        answered = [
            pending
            for pending, answer in zip(live, answers, strict=True)
            if isinstance(pending.answer(answer), InferResponse) and pending.counts
        ]
        self._report(answered, started_s, stages)

    def _fail(self, session: Session, live: Sequence[Pending], error: ServingError) -> None:
        """Answer a batch that failed. One request's values may have failed it: its peers are run again, each alone."""
        if len(live) == 1 or isinstance(session, RequestSession):
            for pending in live:
                pending.answer(error)
        else:
            for pending in live:
                self.execute(session, [pending])

    def _run(self, session: Session, live: Sequence[Pending]) -> tuple[Sequence[Answer], _Stages]:
        if isinstance(session, RequestSession):
            return self._run_requests(session, live)
        rows = sum(pending.rows for pending in live) if self._signature.batches else None
        outputs, stages = self._infer(session, [pending.inputs for pending in live], rows, live[0].batch_key)
        return self._split(live, outputs), stages

    def _run_requests(self, session: RequestSession, live: Sequence[Pending]) -> tuple[Sequence[Answer], _Stages]:
        requests = [
            Request(
                pending.request.id,
                {name: _aligned(array) for name, array in pending.inputs.items()},
                pending.rows,
                pending.request.requested_outputs,
                pending.request.parameters,
            )
            for pending in live
        ]
        collated_s = self._clock()
        outcomes = session.execute(requests)
        stages = _Stages(collated_s, self._clock())
        if len(outcomes) != len(live):
            raise ExecutionFailed(
                f"model '{self._model}' answered {len(outcomes)} of {len(live)} requests; it must answer each"
            )
        return [self._answer_outcome(pending, outcome) for pending, outcome in zip(live, outcomes, strict=True)], stages

    def _answer_outcome(self, pending: Pending, outcome: object) -> Answer:
        """One request's outcome as its answer; a bad outcome is that request's error alone."""
        if isinstance(outcome, ServingError):
            return outcome
        if not isinstance(outcome, Response):
            return ExecutionFailed(f"model '{self._model}' answered a request with a {type(outcome).__name__}")
        try:
            rows = pending.rows if self._signature.batches else None
            names = pending.request.requested_outputs
            outputs = self._check.check(outcome.outputs, pending.inputs, rows, names)
            return self._respond(pending, outputs, outcome.parameters)
        except ExecutionFailed as exc:
            return exc

    def _infer(
        self, session: Session, parts: Sequence[Tensors], rows: int | None, key: BatchKey
    ) -> tuple[Tensors, _Stages]:
        """Run ``parts`` as one batch, padded; the outputs as they come, checked."""
        if not isinstance(session, TensorSession):
            raise TypeError(f"{type(session).__name__} is neither a TensorSession nor a RequestSession")
        eagerly = self._outside is Outside.EAGER and not self._padding.fits(key)
        if rows is not None and not eagerly:
            rows = self._padding.bucket_rows(rows)
        inputs = self._padding.collate(parts, rows, key, partial(self._staging.room, allocate=session.allocate))
        collated_s = self._clock()
        outputs = self._infer_eagerly(session, inputs) if eagerly else session.infer(inputs)
        stages = _Stages(collated_s, self._clock())
        return self._check.check(outputs, inputs, rows), stages

    def _infer_eagerly(self, session: TensorSession, inputs: Tensors) -> Tensors:
        started_s = self._clock()
        outputs = session.infer_eagerly(inputs)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        report_compilation(Compilation(CompilationKind.EAGER, shapes, self._clock() - started_s))
        return outputs

    def _split(self, live: Sequence[Pending], outputs: Tensors) -> list[Answer]:
        if not self._signature.batches:
            return [self._respond(live[0], self._padding.cut(outputs, live[0].inputs, None))]
        answers: list[Answer] = []
        stop = 0
        for pending in live:
            start, stop = stop, stop + pending.rows
            answers.append(self._respond(pending, self._padding.cut(outputs, pending.inputs, slice(start, stop))))
        return answers

    def _respond(
        self, pending: Pending, outputs: Tensors, parameters: Mapping[str, Parameter] = NO_PARAMETERS
    ) -> InferResponse:
        request, types = pending.request, self._output_types
        names = request.requested_outputs or outputs
        given = [OutputTensor(name, types[name], outputs[name]) for name in names]
        if self._reshapes:
            given = [each._replace(array=self._reshape(each.name, each.array)) for each in given]
        return InferResponse(self._model, self._version_text, request.id, tuple(given), parameters)

    def _reshape(self, name: str, array: Array) -> Array:
        reshape = self._reshapes.get(name)
        return array if reshape is None else reshape.to_client(array, batched=self._signature.batches)

    def _report(self, answered: Sequence[Pending], started_s: float, stages: _Stages) -> None:
        if not answered:
            return
        self._observer(
            BatchExecuted(
                self._model,
                self._version,
                sum([pending.rows for pending in answered]),
                [pending.arrived_s for pending in answered],
                started_s,
                stages.collated_s,
                stages.inferred_s,
                self._clock(),
            )
        )


def _aligned(array: Array) -> Array:
    """``array`` where its type may lie: no staging, for a session that sees requests whole may keep what it gets."""
    return array if array.flags.aligned else array.copy()


def _rows(part: Tensors) -> int:
    return next((array.shape[0] for array in part.values()), 1)
