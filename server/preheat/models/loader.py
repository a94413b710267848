"""From a model folder to a warm handle."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, replace

from preheat.backend import Backend, Instance, Model, ModelSource, RequestSession, Session
from preheat.errors import BackendMissing
from preheat.models.handle import Engines, Handle, close_model
from preheat.models.lifecycle import Lifecycle
from preheat.models.placement import Placement, place
from preheat.repository.completion import CompletedConfiguration, complete
from preheat.repository.config_json import as_json
from preheat.repository.configuration import ModelConfiguration
from preheat.repository.scan import ModelFolder
from preheat.scheduling.batching import BatchLimits
from preheat.scheduling.execution import Executor
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.warmup import WarmupBatch, default_buckets, plan_samples, plan_warmup
from preheat.scheduling.worker import WarmupPlan, Worker
from preheat.telemetry.events import Observer, VersionLoaded


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """What the server grants each model: its queue's bounds where it sets none, and the cores to share out."""

    max_queue_requests: int
    max_queue_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A warm version that nobody can reach yet, and the event to state once they can."""

    handle: Handle
    event: VersionLoaded


class Loader:
    """Loads model versions. Holds no state between loads: several threads may load at once."""

    def __init__(self, find_backend: Callable[[str], Backend], *, limits: LoadLimits, observer: Observer) -> None:
        self._find_backend = find_backend
        self._limits = limits
        self._observer = observer

    def load(self, folder: ModelFolder, lifecycle: Lifecycle) -> Loaded:
        """Load and warm a version.

        Slow: blocks until every instance is hot. Raises LoadFailed, leaving nothing behind.
        """
        started_s = time.monotonic()
        configuration, version = folder.configuration, lifecycle.version
        backend = self._backend(configuration)
        placements = place(configuration, backend.hardware().devices)
        sources = [self._source(folder, version, placement, placements) for placement in placements]
        completed = complete(configuration, backend.complete(sources[0]))
        sources = [replace(source, config=as_json(completed.proto)) for source in sources]
        engines = self._start(version, completed, sources, _load_models(backend, sources, completed))
        warmup_s = _wait_until_warm(engines)
        load_s = time.monotonic() - started_s - warmup_s
        handle = Handle(lifecycle, completed=completed, engines=engines, observer=self._observer)
        devices = [placement.device for placement in placements]
        return Loaded(
            handle, VersionLoaded(configuration.name, version, configuration.backend, devices, load_s, warmup_s)
        )

    def describe(self, folder: ModelFolder, version: int) -> CompletedConfiguration:
        """The effective configuration, without loading."""
        backend = self._backend(folder.configuration)
        placements = place(folder.configuration, backend.hardware().devices)
        source = self._source(folder, version, placements[0], placements)
        return complete(folder.configuration, backend.complete(source))

    def _backend(self, configuration: ModelConfiguration) -> Backend:
        try:
            return self._find_backend(configuration.backend)
        except BackendMissing as exc:
            raise BackendMissing(f"{configuration.file}: backend: {exc}") from exc

    def _source(
        self, folder: ModelFolder, version: int, placement: Placement, placements: Sequence[Placement]
    ) -> ModelSource:
        configuration = folder.configuration
        instances = sum(each.instances for each in placements)
        return ModelSource(
            name=configuration.name,
            version=version,
            version_path=folder.path / str(version),
            config_path=configuration.file,
            artifact_name=configuration.artifact_name,
            parameters=configuration.backend_parameters,
            device=placement.device,
            instances=placement.instances,
            threads=configuration.server.threads or max(1, self._limits.cores // instances),
            config=as_json(configuration.proto),
        )

    def _start(
        self,
        version: int,
        completed: CompletedConfiguration,
        sources: Sequence[ModelSource],
        models: Sequence[Model],
    ) -> Engines:
        """Start a worker for each instance; they open their sessions and warm them at the same time."""
        configuration = completed.configuration
        buckets = configuration.server.buckets or default_buckets(configuration.max_batch_size)
        executor = Executor(
            configuration.name,
            version,
            signature=completed.signature,
            buckets=buckets if any(model.specializes_on_shape for model in models) else (),
            observer=self._observer,
            reshapes=completed.reshapes,
        )
        queue = RequestQueue(
            _batch_limits(configuration),
            max_requests=self._limits.max_queue_requests,
            max_bytes=self._limits.max_queue_bytes,
            policies=configuration.batching.queues if configuration.batching else None,
        )
        places = [
            (source, model) for source, model in zip(sources, models, strict=True) for _ in range(source.instances)
        ]
        workers = [
            Worker(
                model,
                Instance(ordinal, source.device, source.threads),
                name=f"{configuration.name}/{version} instance {ordinal}",
                plan=_warmup_plan(completed, buckets),
                executor=executor,
                queue=queue,
            )
            for ordinal, (source, model) in enumerate(places)
        ]
        engines = Engines(models, workers, queue)
        try:
            for worker in workers:
                worker.start()
        except BaseException:
            engines.close()
            raise
        return engines


def _load_models(backend: Backend, sources: Sequence[ModelSource], completed: CompletedConfiguration) -> list[Model]:
    """One model per device; closes those already loaded if a later one fails."""
    models: list[Model] = []
    try:
        for source in sources:
            models.append(backend.load(source, completed.signature))  # noqa: PERF401 - what is loaded must be known on failure
    except BaseException:
        for model in models:
            close_model(model)
        raise
    return models


def _wait_until_warm(engines: Engines) -> float:
    """Block until every worker is warm; the seconds of the slowest. If one fails, stop all and raise why."""
    futures = [worker.warm for worker in engines.workers]
    wait(futures, return_when=FIRST_EXCEPTION)
    try:
        return max(future.result() for future in futures)
    except BaseException:  # a model that calls sys.exit() too leaves nothing behind
        engines.close()
        raise


def _warmup_plan(completed: CompletedConfiguration, buckets: Sequence[int]) -> WarmupPlan:
    def plan(session: Session) -> Sequence[WarmupBatch]:
        # A session that sees requests whole may have side effects: only what the configuration asks for is run.
        if isinstance(session, RequestSession):
            return plan_samples(completed.signature, completed.configuration.samples)
        return plan_warmup(completed.signature, buckets, completed.configuration.samples)

    return plan


def _batch_limits(configuration: ModelConfiguration) -> BatchLimits:
    policy = configuration.batching
    if policy is None:
        return BatchLimits(max_rows=max(1, configuration.max_batch_size))
    return BatchLimits(configuration.max_batch_size, True, policy.preferred_rows, policy.max_delay_s)  # noqa: FBT003
