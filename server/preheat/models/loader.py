"""From a model folder to a warm handle."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preheat.backend import Backend, Model, ModelSource, Signature
from preheat.cache import CompileCache
from preheat.errors import BackendMissing, InvalidConfig, reason_of
from preheat.memory.process import resident_bytes
from preheat.models.assembly import batch_limits, join_what_pays, resize_engines, start_engines
from preheat.models.caching import CachedSources, open_cached
from preheat.models.handle import Engines, Handle, close_model
from preheat.models.lifecycle import Lifecycle
from preheat.models.placement import Placement, place
from preheat.models.precompilation import Precompiler
from preheat.repository.completion import CompletedConfiguration, complete
from preheat.repository.config_json import as_json
from preheat.repository.configuration import ModelConfiguration
from preheat.repository.scan import ModelFolder
from preheat.scheduling.pacing import Pace, Pacer, working_s
from preheat.scheduling.queue import RequestQueue
from preheat.scheduling.warming import WarmupReport
from preheat.telemetry.events import InstancesChanged, Observer, VersionLoaded


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """What the server grants each model: its queue's bounds where it sets none, and the cores to share out."""

    max_queue_requests: int
    max_queue_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A warm version that nobody can reach yet, the event to state once they can, and each instance's warm-up.

    ``record`` is what the load that filled the compile cache said of it; empty if that was this one.
    """

    handle: Handle
    event: VersionLoaded
    reports: Sequence[WarmupReport]
    record: Mapping[str, Any]


class Loader:
    """Loads model versions. Holds no state between loads: several threads may load at once."""

    def __init__(
        self,
        find_backend: Callable[[str], Backend],
        *,
        limits: LoadLimits,
        observer: Observer,
        cache: CompileCache | None = None,
        precompiler: Precompiler | None = None,
        pacer: Pacer | None = None,
        most_instances: int | None = None,
        rehearse: Callable[[Handle, Sequence[WarmupReport]], None] | None = None,
    ) -> None:
        """``cache`` None: compiled code is kept nowhere.

        Beside models that serve, ``precompiler`` fills it, and ``pacer`` has loads give way; None: nothing does.
        ``most_instances`` are opened on each device, whatever a configuration asks for. ``rehearse`` asks a version
        that is warm, as its instances report, before anybody else can; None: who loads does not serve.
        """
        self._find_backend = find_backend
        self._limits = limits
        self._observer = observer
        self._cache = cache
        self._precompiler = precompiler
        self._pacer = pacer
        self._most_instances = most_instances
        self._rehearse = rehearse

    def load(self, folder: ModelFolder, lifecycle: Lifecycle, *, serving: bool = False) -> Loaded:
        """Load and warm a version. ``serving``: other models serve, and are not to be slowed down.

        Slow: blocks until every instance is hot. Raises LoadFailed, leaving nothing behind.
        """
        started_s, working_since_s, memory_bytes = time.monotonic(), working_s(), resident_bytes()
        configuration, version = folder.configuration, lifecycle.version
        pace = self._pace(serving=serving)
        with pace():
            # The first of its kind to be loaded has it imported.
            backend = self._backend(configuration)
            placements = place(configuration, backend.hardware().devices)
            sources = [self._source(folder, version, placement, placements) for placement in placements]
            completed = complete(configuration, backend.complete(sources[0]))
        sources = [replace(source, config=as_json(completed.proto), buckets=completed.buckets) for source in sources]
        cached = self._open_cached(backend, sources, completed.signature, folder=folder.path, serving=serving)
        try:
            with pace():
                models = _load_models(backend, cached.sources, completed)
            engines = self._start(version, completed, cached, models, pace)
            with _closed_on_failure(engines):
                reports = [worker.warm.result() for worker in engines.workers]
                join_what_pays(engines, reports, name=f"{configuration.name}/{version}")
                handle = Handle(lifecycle, completed=completed, engines=engines, observer=self._observer)
                if self._rehearse is not None:
                    self._rehearse(handle, reports)
        except InvalidConfig:
            cached.close()
            raise
        except BaseException as exc:
            cached.abandon(reason_of(exc))
            raise
        grown_bytes = max(0, resident_bytes() - memory_bytes)
        took_s = time.monotonic() - started_s
        paused_s = took_s - (working_s() - working_since_s)
        event = _event(lifecycle, completed, sources, reports, took_s, paused_s, grown_bytes)
        cached.store(reports, took_s - event.paused_s)
        return Loaded(handle, event, reports, cached.record)

    def resize(self, folder: ModelFolder, handle: Handle) -> bool:
        """Give a version that serves as many instances as its configuration asks for now, on the models it has.

        Blocks until new instances are hot and those that leave have ended. False, with nothing changed: its devices
        would be others, or its models cannot have that many. Raises LoadFailed, with nothing changed.
        """
        configuration, engines = folder.configuration, handle.engines
        backend = self._backend(configuration)
        placements = place(configuration, backend.hardware().devices)
        sources = [self._source(folder, handle.version, placement, placements) for placement in placements]
        had = [source.device for source in engines.cached.sources]
        if [source.device for source in sources] != had or not all(
            model.can_have(source.instances, source.threads)
            for model, source in zip(engines.models, sources, strict=True)
        ):
            return False
        completed = complete(configuration, backend.complete(sources[0]))
        resized, leaving = resize_engines(engines, handle.version, completed, sources, observer=self._observer)
        handle.run_on(resized, completed)
        for worker in leaving:
            worker.leave()
        for worker in leaving:
            worker.join()
        self._observer(InstancesChanged(handle.name, handle.version, len(resized.workers)))
        return True

    def describe(self, folder: ModelFolder, version: int) -> CompletedConfiguration:
        """The effective configuration, without loading."""
        backend = self._backend(folder.configuration)
        placements = place(folder.configuration, backend.hardware().devices)
        source = self._source(folder, version, placements[0], placements)
        return complete(folder.configuration, backend.complete(source))

    def _pace(self, *, serving: bool) -> Pace:
        return self._pacer.paced if serving and self._pacer is not None else nullcontext

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
            instances=min(placement.instances, self._most_instances or placement.instances),
            threads=configuration.server.threads or max(1, self._limits.cores // instances),
            config=as_json(configuration.proto),
        )

    def _open_cached(
        self, backend: Backend, sources: Sequence[ModelSource], signature: Signature, *, folder: Path, serving: bool
    ) -> CachedSources:
        pace = self._pace(serving=serving)
        with pace():
            cached = open_cached(self._cache, backend, sources, signature)
        if not (cached.cold and serving and self._precompiler is not None):
            return cached
        # The other process needs the lock that this load holds.
        cached.close()
        self._precompiler.compile(folder, sources[0].version)
        with pace():
            return open_cached(self._cache, backend, sources, signature)

    def _start(
        self,
        version: int,
        completed: CompletedConfiguration,
        cached: CachedSources,
        models: Sequence[Model],
        pace: Pace,
    ) -> Engines:
        configuration = completed.configuration
        queue = RequestQueue(
            batch_limits(configuration),
            max_requests=self._limits.max_queue_requests,
            max_bytes=self._limits.max_queue_bytes,
            policies=configuration.batching.queues if configuration.batching else None,
        )
        try:
            return start_engines(version, completed, cached, models, queue=queue, observer=self._observer, pace=pace)
        except InvalidConfig:
            _close_models(models)
            raise


def _event(
    lifecycle: Lifecycle,
    completed: CompletedConfiguration,
    sources: Sequence[ModelSource],
    reports: Sequence[WarmupReport],
    seconds: float,
    paused_s: float,
    grown_bytes: int,
) -> VersionLoaded:
    slowest = max(reports, key=lambda report: report.seconds)
    compilations = [each for report in reports for step in report.steps for each in step.built]
    return VersionLoaded(
        lifecycle.model,
        lifecycle.version,
        completed.configuration.backend,
        [source.device for source in sources],
        load_s=seconds - slowest.seconds,
        warmup_s=slowest.seconds,
        instances=len(reports),
        compiled=len(compilations),
        cached=sum(each.cached for each in compilations),
        grown_bytes=grown_bytes,
        paused_s=paused_s + slowest.paused_s,
    )


def _load_models(backend: Backend, sources: Sequence[ModelSource], completed: CompletedConfiguration) -> list[Model]:
    """One model per device; closes those already loaded if a later one fails."""
    models: list[Model] = []
    try:
        for source in sources:
            models.append(backend.load(source, completed.signature))  # noqa: PERF401 - what is loaded must be known on failure
    except BaseException:
        _close_models(models)
        raise
    return models


def _close_models(models: Sequence[Model]) -> None:
    for model in models:
        close_model(model)


@contextmanager
def _closed_on_failure(engines: Engines) -> Iterator[None]:
    """If what is done with ``engines`` fails, stop all of them."""
    try:
        yield
    except BaseException:  # a model that calls sys.exit() too leaves nothing behind
        engines.close()
        raise
