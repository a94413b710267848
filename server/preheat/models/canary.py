"""Trying a new version on what the one that serves is asked, before it takes over.

Both are asked the same requests, one at a time and at the same time, so that they meet the same conditions, and beside
live traffic, to which this adds little. A new version takes over only if it answers alike and is not much slower.
"""

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np

from preheat.backend import Signature, TensorSpec
from preheat.errors import ServingError
from preheat.messages import InferRequest, InferResponse, InputTensor
from preheat.models.canary_figures import Figures
from preheat.models.comparison import compare_all
from preheat.models.recent import RecentRequests
from preheat.repository.canary_policy import CanaryPolicy
from preheat.repository.completion import CompletedConfiguration
from preheat.scheduling.pending import Answer, Pending, Reply
from preheat.scheduling.warmup import least_size
from preheat.tensors import Array, DataType, Tensors, to_raw

log = logging.getLogger(__name__)

# Why nobody waits for a verdict any more; empty while somebody does.
GivenUp: TypeAlias = Callable[[], str]

# How often is looked whether more requests have come.
_LOOK_SECONDS = 0.02
# An answer may take so long; a version that takes longer hangs.
_ANSWER_SECONDS = 60.0
# As often the new version is asked at most, to keep the cores as busy as they are.
_MOST_RUNS = 50
# Requests that are made up, where nothing is known of what is asked.
_MADE_UP = 4
# What two runs of the same take differs by more than a share, where it is so little.
_NOTHING_SECONDS = 50e-6


class Asked(Protocol):
    """A model version, warm: :class:`preheat.models.handle.Handle`."""

    name: str
    version: int
    completed: CompletedConfiguration
    recent: RecentRequests | None

    def submit(self, request: InferRequest, reply: Reply, *, alone: bool = False) -> Pending | None:
        """As :meth:`preheat.models.handle.Handle.submit`."""

    def cancel(self, pending: Pending) -> None:
        """As :meth:`preheat.models.handle.Handle.cancel`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the new version may take over, and ``text``, why: in one line, with figures."""

    accepted: bool
    text: str


class _Refused(Exception):
    """The new version is refused for what the text says."""


def judge(serving: Asked, candidate: Asked, policy: CanaryPolicy, given_up: GivenUp) -> Verdict:
    """Ask both, and compare. Blocks, for ``policy.seconds`` where little is asked, and for what answering takes.

    What ``given_up`` says ends it early, with the new version refused. Its requests count in the statistics of both.
    """
    log.info(
        "%s/%d is tried on %d requests, against version %d, before it takes over",
        candidate.name, candidate.version, policy.samples, serving.version,
    )  # fmt: skip
    figures = Figures()
    try:
        _check_signatures(serving, candidate)
        for kind, request in _requests(serving, policy, figures, given_up):
            expected, actual = _ask_both(serving, candidate, request, given_up)
            _compare(expected, actual, kind, figures, policy, batched=serving.completed.client_signature.batches)
        _check_figures(policy, figures)
    except _Refused as exc:
        return Verdict(accepted=False, text=f"{exc} ({figures.tell()})" if figures.samples else str(exc))
    log.info("%s/%d takes over: %s", candidate.name, candidate.version, figures.tell())
    return Verdict(accepted=True, text=figures.tell())


def _check_signatures(serving: Asked, candidate: Asked) -> None:
    ours, theirs = (each.completed.client_signature for each in (candidate, serving))
    for kind, new, old in (("inputs", ours.inputs, theirs.inputs), ("outputs", ours.outputs, theirs.outputs)):
        told = [sorted(f"{spec.name} {spec.datatype.value}" for spec in specs) for specs in (new, old)]
        if told[0] != told[1]:
            raise _Refused(f"its {kind} are {', '.join(told[0])}, where they were {', '.join(told[1])}")


def _requests(
    serving: Asked, policy: CanaryPolicy, figures: Figures, given_up: GivenUp
) -> Iterator[tuple[str, InferRequest]]:
    """Live requests as they come, and where these are too few, stored ones; or such as are made up. And their kind.

    Only those count that were compared, by ``figures``: what the version that serves cannot answer is no sample.
    """
    for request in _live_requests(serving, policy.seconds, given_up):
        yield "live", request
        if figures.samples >= policy.samples:
            return
    for request in stored_requests(serving.name, serving.completed):
        yield "stored", request
        if figures.samples >= policy.samples:
            return
    if not figures.samples:
        for request in made_up_requests(serving.name, serving.completed.client_signature):
            yield "made up", request


def _live_requests(serving: Asked, seconds: float, given_up: GivenUp) -> Iterator[InferRequest]:
    """Those there are, and those that come within ``seconds``."""
    until_s = time.monotonic() + seconds
    count = 0
    while True:
        requests, count = ([], 0) if serving.recent is None else serving.recent.since(count)
        yield from requests
        if time.monotonic() >= until_s:
            return
        if reason := given_up():
            raise _Refused(reason)
        if not requests:
            time.sleep(_LOOK_SECONDS)


def stored_requests(name: str, completed: CompletedConfiguration) -> Sequence[InferRequest]:
    """The samples of the configuration's ``model_warmup``."""
    signature = completed.client_signature
    return [
        _request(
            name,
            signature,
            {each: _as_clients_send(row, sample.rows, each, completed) for each, row in sample.inputs.items()},
        )
        for sample in completed.configuration.samples
    ]


def _as_clients_send(row: Array, rows: int, name: str, completed: CompletedConfiguration) -> Array:
    """``rows`` times a sample's row, which is in the model's shape."""
    return completed.as_clients_send(name, np.stack([row] * rows) if completed.signature.batches else row)


def made_up_requests(name: str, signature: Signature) -> Iterator[InferRequest]:
    """Requests of one row whose values are valid wherever zeros and ones are, and differ. None where a size is open."""
    random = np.random.default_rng(0)
    for _ in range(_MADE_UP):
        rows = {spec.name: _made_up(spec, random) for spec in signature.inputs if not spec.optional}
        batch = {each: row[np.newaxis] for each, row in rows.items()} if signature.batches else rows
        yield _request(name, signature, batch)


def _made_up(spec: TensorSpec, random: np.random.Generator) -> Array:
    shape = tuple((least_size(axis) or 1) if axis.size is None else axis.size for axis in spec.shape)
    if spec.datatype is DataType.BYTES:
        return np.full(shape, b"preheat", np.object_)
    if spec.datatype.numpy.kind in "iub":
        return random.integers(0, 2, shape).astype(spec.datatype.numpy)
    return random.normal(size=shape).astype(spec.datatype.numpy)


def _request(name: str, signature: Signature, inputs: Tensors) -> InferRequest:
    datatypes = {spec.name: spec.datatype.value for spec in signature.inputs}
    tensors = [InputTensor(each, datatypes[each], array.shape, to_raw(array)) for each, array in inputs.items()]
    return InferRequest(name, "", "", tuple(tensors), payload_bytes=sum(len(tensor.data) for tensor in tensors))


@dataclass(frozen=True, slots=True)
class _Answered:
    """Outputs, or why there are none; and what computing them took the session, in seconds."""

    outputs: Tensors | ServingError
    compute_s: float = 0.0


def _compare(
    expected: _Answered, actual: _Answered, kind: str, figures: Figures, policy: CanaryPolicy, *, batched: bool
) -> None:
    """Note how far two answers agree. What the version that serves cannot answer is no sample."""
    if isinstance(expected.outputs, ServingError):
        return
    if isinstance(actual.outputs, ServingError):
        raise _Refused(f"it does not answer what is answered now: {actual.outputs}")
    figures.kinds[kind] += 1
    for name, found in compare_all(expected.outputs, actual.outputs, policy.outputs, batched=batched).items():
        figures.note(name, expected.outputs.get(name), actual.outputs.get(name), found, batched=batched)
    figures.serving_s.append(expected.compute_s)
    figures.candidate_s.append(actual.compute_s)


class _Question:
    """A request that was asked of a version, alone; the answer comes on another thread."""

    def __init__(self, asked: Asked, request: InferRequest) -> None:
        """Raises _Refused if it is served no more."""
        self._asked = asked
        self._outcome: list[Tensors | ServingError] = []
        self._pending: Pending | None = None
        self.answered = threading.Event()
        try:
            self._pending = asked.submit(request, self._reply, alone=True)
        except ServingError as exc:
            self._outcome.append(exc)
            self.answered.set()
            return
        if self._pending is None:
            raise _Refused(f"version {asked.version} is served no more")

    def wait(self, given_up: GivenUp) -> _Answered:
        """Raises _Refused for an answer that does not come, and where it is given up before."""
        until_s = time.monotonic() + _ANSWER_SECONDS
        while not self.answered.wait(_LOOK_SECONDS):
            if reason := given_up():
                self._cancel()
                raise _Refused(reason)
            if time.monotonic() >= until_s:
                self._cancel()
                raise _Refused(f"version {self._asked.version} has not answered within {_ANSWER_SECONDS:.0f} s")
        compute_s = None if self._pending is None else self._pending.compute_s
        return _Answered(self._outcome[0], compute_s or 0.0)

    def _cancel(self) -> None:
        if self._pending is not None:
            self._asked.cancel(self._pending)

    def _reply(self, answer: Answer) -> Answer:
        # Arrays are good until this returns.
        given = (
            {each.name: each.array.copy() for each in answer.outputs} if isinstance(answer, InferResponse) else answer
        )
        self._outcome.append(given)
        self.answered.set()
        return answer


def _ask_both(
    serving: Asked, candidate: Asked, request: InferRequest, given_up: GivenUp
) -> tuple[_Answered, _Answered]:
    """Ask both at once. The new version is asked again until the other has answered, for what each takes is compared.

    Beside live traffic it would otherwise be the only one that shares the cores with another: the one that serves runs
    nothing else while it computes. What it takes is the median of its runs.
    """
    question = _Question(serving, request)
    actual = _Question(candidate, request).wait(given_up)
    took_s = [actual.compute_s]
    while not question.answered.is_set() and len(took_s) < _MOST_RUNS:
        again = _Question(candidate, request).wait(given_up)
        if isinstance(again.outputs, ServingError):
            actual = again
            break
        took_s.append(again.compute_s)
    return question.wait(given_up), replace(actual, compute_s=statistics.median(took_s))


def _check_figures(policy: CanaryPolicy, figures: Figures) -> None:
    if not figures.samples:
        raise _Refused(
            "there is nothing to compare: no request that the version before answers. Give it samples, in "
            "model_warmup, or longer to wait for requests, preheat.canary.seconds"
        )
    for name, found in figures.found().items():
        problem = next((each.problem for each in found if each.problem), "")
        if problem:
            raise _Refused(f"output '{name}' {problem}")
        cosine, difference = min(each.cosine for each in found), max(each.difference for each in found)
        if policy.min_cosine is not None and cosine < policy.min_cosine:
            raise _Refused(f"output '{name}' agrees too little: cosine {cosine:.4f}, allowed is {policy.min_cosine:g}")
        if policy.tolerance is not None and not difference <= policy.tolerance:
            raise _Refused(
                f"output '{name}' differs by {difference:.2%} of its largest value, allowed is {policy.tolerance:.2%}"
            )
    slower_s = statistics.median(figures.candidate_s) - statistics.median(figures.serving_s)
    if figures.slowdown > policy.max_slowdown and slower_s > _NOTHING_SECONDS:
        raise _Refused(f"it takes {figures.slowdown:.2f} times as long, allowed is {policy.max_slowdown:g}")
