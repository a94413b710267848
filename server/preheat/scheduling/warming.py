"""Running a warm-up: pass after pass, until one states no compilation any more."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from preheat.backend import Buckets, RequestSession, Session, Signature, TensorSession
from preheat.compilations import Compilation, CompilationKind
from preheat.errors import LoadFailed, ServingError, reason_of
from preheat.memory.process import resident_bytes
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.scheduling.execution import Executor
from preheat.scheduling.pacing import working_s
from preheat.scheduling.padding_check import Infer, PaddingCheck
from preheat.scheduling.pending import BatchKey
from preheat.scheduling.row_cost import find_worthwhile
from preheat.scheduling.warmup import Sample, WarmupBatch, plan_samples, plan_warmup

log = logging.getLogger(__name__)

# CUDA-graph trees warm, record, then replay: the third pass is the first that can be free of events.
_MOST_PASSES = 6
# A step that took this long is worth a line also where nothing was compiled.
_NOTABLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WarmupStep:
    """One execution of the warm-up: what it ran, in which pass (from 1), and what it took, but for pauses.

    ``memory_bytes`` is by how much the process grew.
    """

    label: str
    number: int
    seconds: float
    memory_bytes: int
    compilations: Sequence[Compilation]

    @property
    def built(self) -> Sequence[Compilation]:
        """What need not be built again. What ran uncompiled, since a sample is outside every bucket, always will."""
        return [each for each in self.compilations if each.kind is not CompilationKind.EAGER]


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """What one instance's warm-up did.

    ``worthwhile``: as :func:`~preheat.scheduling.row_cost.find_worthwhile` says. ``paused_s``: for how much of its
    ``seconds`` the thread paused, so that others get their turn. ``bucket_s``: what the quickest bucket took in the
    last pass, in seconds; infinite for a session that sees requests whole, which runs none.
    """

    seconds: float = 0.0
    steps: Sequence[WarmupStep] = ()
    worthwhile: Mapping[BatchKey, int] = field(default_factory=dict)
    paused_s: float = 0.0
    bucket_s: float = math.inf

    @property
    def compilations(self) -> int:
        """How many compilations were stated in all."""
        return sum(len(step.compilations) for step in self.steps)

    @property
    def slowest_s(self) -> float:
        """What the slowest batch of the last pass took, in seconds; without any, as slow as can be."""
        last = max((step.number for step in self.steps), default=0)
        return max((step.seconds for step in self.steps if step.number == last), default=math.inf)


@dataclass(frozen=True, slots=True)
class Warmup:
    """How the instances of one model version are warmed. Any thread may call it.

    ``name`` begins log lines and errors. ``check`` tries the padding, None where nothing is padded. ``weighs``: whether
    it is up to the server how many requests share a batch, so that it has to know what batches cost.
    """

    name: str
    signature: Signature
    buckets: Buckets
    samples: Sequence[Sample]
    executor: Executor
    check: PaddingCheck | None = None
    weighs: bool = False

    def run(self, session: Session, record: CompilationRecord, *, instance: int, eagerly: bool) -> WarmupReport:
        """Warm ``session``, on its thread. Raises LoadFailed, saying at what.

        ``eagerly``: the session can run without compiling. The first instance tries the padding, for all.
        """
        started_s, working_since_s = time.monotonic(), working_s()
        batches = self._plan(session)
        if self.check is not None and instance == 0 and isinstance(session, TensorSession):
            self._try_padding(self.check, session.infer_eagerly if eagerly else session.infer)
        steps: list[WarmupStep] = []
        for number in range(1, _MOST_PASSES + 1):
            done = [
                self._step(
                    session, record, batch, number, f"instance {instance}: {batch.label} ({k} of {len(batches)})"
                )
                for k, batch in enumerate(batches, start=1)
            ]
            steps += done
            if not any(step.built for step in done):
                worthwhile = self._weigh(session, batches, done)
                took_s = time.monotonic() - started_s
                paused_s = took_s - (working_s() - working_since_s)
                buckets_s = [step.seconds for batch, step in zip(batches, done, strict=True) if batch.key is not None]
                return WarmupReport(took_s, steps, worthwhile, paused_s, min(buckets_s, default=math.inf))
        late = next(step for step in steps if step.number == _MOST_PASSES and step.built)
        raise LoadFailed(
            f"warm-up of {self.name} does not come to an end: in pass {_MOST_PASSES}, {late.label} still compiled "
            f"{late.built[0].what}"
        )

    def _weigh(
        self, session: Session, batches: Sequence[WarmupBatch], done: Sequence[WarmupStep]
    ) -> Mapping[BatchKey, int]:
        """Find the batches that are not worth it, from what the last pass took."""
        if not (self.weighs and self.signature.batches):
            return {}

        def run(batch: WarmupBatch) -> float:
            started_s = working_s()
            self.executor.warm(session, batch)
            return working_s() - started_s

        try:
            return find_worthwhile(batches, [step.seconds for step in done], run)
        except BaseException as exc:
            raise LoadFailed(f"warm-up of {self.name} failed when batches were timed: {reason_of(exc)}") from exc

    def _try_padding(self, check: PaddingCheck, infer: Infer) -> None:
        try:
            check.run(infer)
        except LoadFailed:
            raise
        except BaseException as exc:
            raise LoadFailed(f"{self.name}: trying whether it can be padded failed: {reason_of(exc)}") from exc

    def _plan(self, session: Session) -> Sequence[WarmupBatch]:
        # A session that sees requests whole may have side effects: only what the configuration asks for is run.
        if isinstance(session, RequestSession):
            return plan_samples(self.signature, self.samples)
        return plan_warmup(self.signature, self.buckets, self.samples)

    def _step(
        self, session: Session, record: CompilationRecord, batch: WarmupBatch, number: int, label: str
    ) -> WarmupStep:
        seen, memory_bytes, started_s = len(record.seen), resident_bytes(), working_s()
        try:
            self.executor.warm(session, batch)
        except BaseException as exc:
            if not isinstance(exc, ServingError):
                log.exception("warm-up of %s failed at %s", self.name, label)
            raise LoadFailed(f"warm-up of {self.name} failed at {label}: {reason_of(exc)}") from exc
        step = WarmupStep(
            batch.label,
            number,
            working_s() - started_s,
            resident_bytes() - memory_bytes,
            tuple(record.seen[seen:]),
        )
        self._tell(step, label)
        return step

    def _tell(self, step: WarmupStep, label: str) -> None:
        """Show progress: who waits for a compiler wants to know how far it has come."""
        notable = step.compilations or step.seconds >= _NOTABLE_SECONDS
        built = [compilation for compilation in step.compilations if not compilation.cached]
        log.log(
            logging.INFO if notable else logging.DEBUG,
            "%s %s, pass %d: %.2f s, %d compiled, %d from the cache",
            self.name, label, step.number, step.seconds, len(built), len(step.compilations) - len(built),
        )  # fmt: skip
