"""Putting together what serves one model version: its queue, its workers, and how they are warmed."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count

from preheat.backend import Buckets, Instance, Model, ModelSource, Outside
from preheat.errors import InvalidConfig
from preheat.models.caching import CachedSources
from preheat.models.handle import Engines
from preheat.repository.completion import CompletedConfiguration
from preheat.repository.configuration import ModelConfiguration
from preheat.scheduling.batching import BatchLimits
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.scheduling.execution import Executor
from preheat.scheduling.pacing import Pace
from preheat.scheduling.padding import Padding
from preheat.scheduling.padding_check import DEFAULT_TOLERANCE, PaddingCheck
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.row_cost import tell_worthwhile
from preheat.scheduling.warming import Warmup, WarmupReport
from preheat.scheduling.worker import Worker
from preheat.telemetry.events import Observer

log = logging.getLogger(__name__)


def start_engines(
    version: int,
    completed: CompletedConfiguration,
    cached: CachedSources,
    models: Sequence[Model],
    *,
    queue: RequestQueue,
    observer: Observer,
    pace: Pace,
) -> Engines:
    """Start a worker for each instance of ``models``, one for each source; they open and warm at the same time.

    Each does so at ``pace``. Raises InvalidConfig, with nothing started and the models still open.
    """
    _check_outside(completed, models)
    pairs = [
        (source, model) for source, model in zip(cached.sources, models, strict=True) for _ in range(source.instances)
    ]
    places = [(ordinal, source, model) for ordinal, (source, model) in enumerate(pairs)]
    workers = _workers(version, completed, places, models, queue=queue, observer=observer, pace=pace)
    engines = Engines(models, workers, queue, cached)
    try:
        for worker in workers:
            worker.start()
    except BaseException:
        engines.close()
        raise
    return engines


def resize_engines(
    engines: Engines,
    version: int,
    completed: CompletedConfiguration,
    sources: Sequence[ModelSource],
    *,
    observer: Observer,
) -> tuple[Engines, Sequence[Worker]]:
    """As many workers as ``sources`` have instances, on the models of ``engines``; and those that are to leave.

    A worker stays if its place is still one, with as many threads. Blocks until new ones are hot, which are not paced:
    the model may have locks that those who serve it wait for. Raises LoadFailed, and then ``engines`` is as it was.
    """
    spare = list(engines.workers)
    stay: list[Worker] = []
    missing: list[tuple[ModelSource, Model]] = []
    for source, model in zip(sources, engines.models, strict=True):
        for _ in range(source.instances):
            same = next((each for each in spare if each.runs_at(source.device, source.threads)), None)
            if same is None:
                missing.append((source, model))
            else:
                spare.remove(same)
                stay.append(same)
    taken = {worker.ordinal for worker in stay}
    free = (ordinal for ordinal in count() if ordinal not in taken)
    places = [(next(free), source, model) for source, model in missing]
    come = _workers(
        version, completed, places, engines.models, queue=engines.queue, observer=observer, pace=nullcontext
    )
    _start_and_warm(come)
    resized = replace(engines, workers=[*stay, *come], cached=replace(engines.cached, sources=sources))
    return resized, spare


def _start_and_warm(workers: Sequence[Worker]) -> None:
    """Start workers beside others that serve, and block until they are hot. If one fails, all of them leave."""
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.warm.result()
    except BaseException:
        for worker in workers:
            worker.leave()
        for worker in workers:
            worker.join()
        raise


def _workers(
    version: int,
    completed: CompletedConfiguration,
    places: Sequence[tuple[int, ModelSource, Model]],
    models: Sequence[Model],
    *,
    queue: RequestQueue,
    observer: Observer,
    pace: Pace,
) -> list[Worker]:
    """A worker for each of ``places``: its ordinal, and on which of ``models`` it opens its session."""
    warmup = _warmup(version, completed, models, observer)
    return [
        Worker(
            model,
            Instance(ordinal, source.device, source.threads),
            name=f"{warmup.name} instance {ordinal}",
            warm_up=partial(warmup.run, instance=ordinal, eagerly=model.runs_eagerly),
            record=CompilationRecord(completed.configuration.name, version, ordinal, observer),
            executor=warmup.executor,
            queue=queue,
            pace=pace,
        )
        for ordinal, source, model in places
    ]


def join_what_pays(engines: Engines, reports: Sequence[WarmupReport], *, name: str) -> None:
    """Have requests joined to no more rows than the warm-ups found worthwhile, all of them: each may be disturbed."""
    keys = set(reports[0].worthwhile).intersection(*(report.worthwhile for report in reports))
    worthwhile = {key: max(report.worthwhile[key] for report in reports) for key in keys}
    for line in tell_worthwhile(worthwhile):
        log.info("%s: %s", name, line)
    engines.queue.limit_rows(worthwhile)


def batch_limits(configuration: ModelConfiguration) -> BatchLimits:
    """How requests of the model may be joined."""
    policy = configuration.batching
    if policy is None:
        return BatchLimits(max_rows=max(1, configuration.max_batch_size))
    return BatchLimits(configuration.max_batch_size, True, policy.preferred_rows, policy.max_delay_s)  # noqa: FBT003


def _warmup(version: int, completed: CompletedConfiguration, models: Sequence[Model], observer: Observer) -> Warmup:
    configuration, buckets = completed.configuration, completed.buckets
    # Batches of an engine that does not specialize run at their own size.
    rows = buckets.rows if any(model.specializes_on_shape for model in models) else ()
    executor = Executor(
        configuration.name,
        version,
        signature=completed.signature,
        padding=Padding(completed.signature, Buckets(rows, buckets.sizes, buckets.outside), completed.pad_values),
        outside=buckets.outside,
        observer=observer,
        reshapes=completed.reshapes,
    )
    return Warmup(
        f"{configuration.name}/{version}",
        completed.signature,
        buckets,
        configuration.samples,
        executor,
        _padding_check(completed) if buckets.sizes else None,
        weighs=_weighs(configuration),
    )


def _weighs(configuration: ModelConfiguration) -> bool:
    """Whether batches are as large as pays. Whoever prefers certain sizes has weighed it already."""
    return configuration.batching is not None and not configuration.batching.preferred_rows


def _padding_check(completed: CompletedConfiguration) -> PaddingCheck:
    configuration = completed.configuration
    tolerance = configuration.server.padding_tolerance
    return PaddingCheck(
        configuration.name,
        completed.signature,
        completed.buckets,
        completed.pad_values,
        configuration.samples[0].inputs if configuration.samples else {},
        DEFAULT_TOLERANCE if tolerance is None else tolerance,
    )


def _check_outside(completed: CompletedConfiguration, models: Sequence[Model]) -> None:
    if completed.buckets.outside is Outside.EAGER and not all(model.runs_eagerly for model in models):
        configuration = completed.configuration
        raise InvalidConfig(
            f"{configuration.file}: parameters: preheat.outside_buckets: eager: backend '{configuration.backend}' runs "
            "only what it has built; set refuse or compile"
        )
