"""The composition root: the one module that knows every layer, and the order in which they start and stop."""

import asyncio
import gc
import logging
import math
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from preheat import __version__
from preheat.cache import CompileCache, open_cache
from preheat.engine import Control, Engine, Phase
from preheat.errors import BackendMissing
from preheat.memory.cuda import load_driver
from preheat.memory.regions import Regions
from preheat.models.departures import Departures
from preheat.models.following import Follower
from preheat.models.lifecycle import State
from preheat.models.loader import Loader, LoadLimits
from preheat.models.manager import Job, ModelManager
from preheat.models.precompilation import Precompiler
from preheat.models.registry import Registry, VersionState
from preheat.models.rehearsal import rehearse
from preheat.models.swapping import Swapper
from preheat.plugins import backend_names, load_backend
from preheat.repository.arrival import remove_leftovers
from preheat.repository.scan import BrokenModel, ModelFolder, scan
from preheat.repository.stamps import UNKNOWN, stamp_models
from preheat.repository.watching import Watcher
from preheat.scheduling.pacing import Pacer
from preheat.settings import InvalidSetting, Settings
from preheat.telemetry.events import Event, ModelSettled, Observer, StateChanged, broadcast
from preheat.telemetry.gpu import GpuCollector
from preheat.telemetry.log_lines import log_event
from preheat.telemetry.machine import MachineCollector
from preheat.telemetry.metrics import MetricsServer, StatisticsCollector
from preheat.telemetry.statistics import Statistics
from preheat.transport.choice import make_transport
from preheat.transport.listening import Listening, Tls, address_of

log = logging.getLogger("preheat")

# Loads need give way to nobody where nothing was asked for so long.
_IDLE_SECONDS = 10.0
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
# Changes that come so soon after one that was told are told together: with many models, telling takes its time.
_HEALTH_SECONDS = 0.1
# Answers that are ready when the transport stops get this long to reach their clients.
_FLUSH_SECONDS = 5.0
# A signal that comes so soon after the first is the same one again.
_SECOND_SIGNAL_SECONDS = 0.1


class Server:
    """A server from start to stop. Belongs to one event loop.

    Constructing it builds the layers, bottom up, and reads the repositories; raises InvalidConfig if one is no folder.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asked_backends = _asked_backends(settings)
        self._started_s = time.monotonic()
        # Whether all was tried that was there at the start, and whether it was said that all came up.
        self._loaded = False
        self._told_ready = False
        self._statistics = Statistics()
        self._health_changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        observer = broadcast(self._statistics.observe, rare=(log_event, self._notice))
        self._registry = Registry(observer=observer)
        self._cache = open_cache(settings.cache_dir, max_bytes=settings.cache_max_bytes)
        pacer = Pacer(settings.load_share, in_use=lambda: self._statistics.idle_s() < _IDLE_SECONDS)
        self._manager = _make_manager(settings, self._registry, self._cache, pacer, observer)
        control = Control(settings.model_control_mode)
        self._regions = Regions(load_driver()) if settings.allow_client_shm else None
        self._engine = Engine(
            self._registry,
            self._manager,
            self._statistics,
            name=settings.id,
            control=control,
            regions=self._regions,
            uploads=settings.allow_model_upload,
        )
        self._transport = make_transport(
            self._engine, _listening(settings), wanted=settings.transport, trusted=settings.trusted_network
        )
        if removed := remove_leftovers(settings.repositories):
            log.info("removed %d versions that were being received when a server ended", removed)
        self._watches = control is Control.WATCH
        # Before they are read: what changes from then on is seen.
        stamps = stamp_models(settings.repositories) if self._watches else {}
        restless = {name for name, stamp in stamps.items() if not stamp.rests(settings.settle_seconds)}
        # Every model is declared before a client can ask, so that none is unknown and the server is not ready.
        self._found = scan(settings.repositories)
        self._jobs = self._declare(restless)
        self._follower = Follower(self._manager.refresh, concurrency=settings.load_concurrency)
        self._watcher = Watcher(
            settings.repositories,
            # Nothing is like what is not known of the restless; but that they go is news.
            known={name: UNKNOWN if name in restless else stamp for name, stamp in stamps.items()},
            tell=self._follower.tell,
            settle_s=settings.settle_seconds,
            poll_s=settings.repository_poll_seconds,
        )

    def _declare(self, restless: Set[str]) -> list[Job]:
        """Have the manager know what was found, and the server wait for it; what of it is to be loaded at once."""
        if restless:
            log.info("not loaded until their files have come to rest: %s", ", ".join(sorted(restless)))
        at_rest = {name: folder for name, folder in self._found.items() if name not in restless}
        self._registry.wait_for(restless)
        return self._manager.declare(_wanted(self._settings, at_rest))

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until ``stop`` is set, then stop in order. Whether every session and load has ended.

        Raises OSError if a port cannot be had.
        """
        host = self._settings.host
        metrics = MetricsServer(
            StatisticsCollector(self._statistics, self._waiting),
            MachineCollector(),
            GpuCollector(),
            host=host,
            port=self._settings.metrics_port,
        )
        try:
            port = await self._transport.start()
            log.info("Preheat %s: gRPC on %s (%s)", __version__, address_of(host, port), self._transport.name)
            log.info("metrics on http://%s/metrics", address_of(host, metrics.port))
            health = asyncio.create_task(self._follow_health())
            loading = asyncio.create_task(self._load())
            for task in (health, loading):
                task.add_done_callback(_log_failure)
            await stop.wait()
            hanging = await self._stop()
            health.cancel()
            busy = self._transport.blocked or self._follower.busy
            return loading.done() and not hanging and not busy
        finally:
            metrics.close()
            self._close_cache()

    def _close_cache(self) -> None:
        try:
            if self._cache is not None:
                self._cache.close()
        except OSError as exc:  # a load that goes on while the process ends may still write to its folder
            log.warning("compile cache: what is left of this run is removed at the next start: %s", exc)

    async def _load(self) -> None:
        # Not the loop's own executor: ending the loop waits for that, and a load cannot be interrupted.
        executor = ThreadPoolExecutor(1, thread_name_prefix="repository")
        await self._loop.run_in_executor(executor, _import_backends, self._found.values(), self._asked_backends)
        await self._loop.run_in_executor(executor, self._manager.load, self._jobs)
        if self._watches:
            self._watcher.start()
        # Whoever reads the line that follows finds health to agree with it.
        self._transport.refresh_health()
        failed = [_subject(row) for row in self._registry.index() if row.state is State.FAILED]
        if failed and not self._registry.all_ready():
            log.error(
                "not ready: %d model versions are hot after %.1f s and served, but these failed: %s",
                len(self._registry.handles()), time.monotonic() - self._started_s, ", ".join(failed),
            )  # fmt: skip
        self._loaded = True
        self._tell_when_ready()

    def _tell_when_ready(self) -> None:
        """Log that all came up, once."""
        if self._loaded and not self._told_ready and self._registry.all_ready():
            self._told_ready = True
            self._transport.refresh_health()
            seconds = time.monotonic() - self._started_s
            log.info("ready: %d model versions are hot after %.1f s", len(self._registry.handles()), seconds)

    async def _stop(self) -> int:
        """Not ready, go on serving for a while, refuse the rest, drain, answer what is left, free.

        How many models could not be freed, because a session of theirs hangs.
        """
        limit_s = self._settings.exit_timeout_seconds
        self._engine.enter(Phase.LAME_DUCK)
        self._transport.refresh_health()
        if self._settings.lame_duck_seconds:
            log.info("stopping: not ready, serving for another %.1f s", self._settings.lame_duck_seconds)
            await asyncio.sleep(self._settings.lame_duck_seconds)
        log.info("stopping: refusing new requests, finishing accepted ones within %.1f s", limit_s)
        self._engine.enter(Phase.STOPPING)
        await asyncio.to_thread(self._watcher.close)
        self._follower.close()
        try:
            unloaded = await asyncio.to_thread(self._manager.unload_all, limit_s)
        finally:
            await self._transport.stop(_FLUSH_SECONDS)
            if self._regions is not None:
                self._regions.close()
        log.info("stopped: %d requests could not be finished in time", unloaded.abandoned)
        return unloaded.hanging

    async def _follow_health(self) -> None:
        """Keep the health service true to the engine."""
        while True:
            await self._health_changed.wait()
            self._health_changed.clear()
            self._transport.refresh_health()
            self._tell_when_ready()
            await asyncio.sleep(_HEALTH_SECONDS)

    def _notice(self, event: Event) -> None:
        if isinstance(event, StateChanged | ModelSettled):
            self._loop.call_soon_threadsafe(self._health_changed.set)

    def _waiting(self) -> Mapping[tuple[str, int], int]:
        return {(handle.name, handle.version): handle.waiting for handle in self._registry.handles()}


def _make_manager(
    settings: Settings,
    registry: Registry,
    cache: CompileCache | None,
    pacer: Pacer,
    observer: Observer,
) -> ModelManager:
    departures = Departures(registry, observer=observer)
    loader = _make_loader(settings, cache, pacer, observer)
    swapper = Swapper(registry, loader, departures, keep_s=settings.rollback_seconds, observer=observer)
    return ModelManager(
        registry,
        swapper,
        departures,
        repositories=settings.repositories,
        concurrency=settings.load_concurrency,
        observer=observer,
    )


def _make_loader(settings: Settings, cache: CompileCache | None, pacer: Pacer, observer: Observer) -> Loader:
    options = ["--cache-dir", settings.cache_dir, "--cache-max-bytes", str(settings.cache_max_bytes)]
    return Loader(
        load_backend,
        limits=LoadLimits(settings.max_queue_requests, settings.max_queue_bytes, os.cpu_count() or 1),
        observer=observer,
        cache=cache,
        precompiler=None if cache is None else Precompiler([*options, "--log-level", settings.log_level]),
        pacer=pacer,
        rehearse=rehearse,
    )


def _listening(settings: Settings) -> Listening:
    """Raises InvalidSetting for settings that cannot be together."""
    if settings.grpc_port and settings.grpc_port == settings.metrics_port:
        raise InvalidSetting(f"--metrics-port: {settings.metrics_port}: is --grpc-port too; choose another")
    return Listening(
        host=settings.host,
        port=settings.grpc_port,
        max_message_bytes=settings.max_message_bytes,
        max_concurrent_streams=settings.max_concurrent_streams or None,
        keepalive_s=settings.keepalive_seconds,
        keepalive_timeout_s=settings.keepalive_timeout_seconds,
        max_connection_age_s=settings.max_connection_age_seconds or None,
        compression=settings.response_compression,
        tls=_tls(settings),
    )


def _tls(settings: Settings) -> Tls | None:
    """Raises InvalidSetting for half a certificate."""
    certificate, key, authorities = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if not certificate and not key:
        if authorities:
            raise InvalidSetting("--tls-client-ca: needs --tls-certificate and --tls-key")
        return None
    if not (certificate and key):
        raise InvalidSetting("--tls-certificate and --tls-key: the one needs the other")
    return Tls(Path(certificate), Path(key), Path(authorities) if authorities else None)


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a background task of the server failed", exc_info=task.exception())


def _subject(row: VersionState) -> str:
    return row.model if row.version is None else f"{row.model}/{row.version}"


def _asked_backends(settings: Settings) -> list[str]:
    """Raises InvalidSetting for one that there is not."""
    known = backend_names()
    asked = [name for name in settings.import_backends.split(",") if name]
    for name in asked:
        if name not in known:
            raise InvalidSetting(f"--import-backends: {name!r}: no such backend; there are {', '.join(known)}")
    return asked


def _import_backends(found: Iterable[ModelFolder | BrokenModel], asked: Sequence[str]) -> None:
    """Import what models will need that are loaded later: then it would keep others waiting, for seconds.

    ``asked``: more of them, that were asked for; one that is missing is logged.

    What is imported stays, so the garbage collector need not look through it again: with torch's compilers that takes
    a quarter of a second, in which nothing else runs.
    """
    names = sorted({model.configuration.backend for model in found if isinstance(model, ModelFolder)} | {*asked})
    if names:
        log.info("importing backends: %s", ", ".join(names))
    for name in names:
        try:
            load_backend(name)
        except BackendMissing as exc:
            # Whoever loads a model of another one is told.
            if name in asked:
                log.error("--import-backends: %s", exc)  # noqa: TRY400 - it says why
    gc.collect()
    gc.freeze()
    # Requests make hundreds of objects that refer to nothing in turn: by default, every few are looked through.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)


def _wanted(
    settings: Settings, found: Mapping[str, ModelFolder | BrokenModel]
) -> Mapping[str, ModelFolder | BrokenModel]:
    """The models to load at the start, of those ``found``. Raises InvalidSetting."""
    if settings.model_control_mode != "explicit":
        if settings.load_models:
            raise InvalidSetting("--load-models: needs --model-control-mode explicit; otherwise every model is loaded")
        return found
    names = settings.load_models.split(",") if settings.load_models else []
    for name in names:
        if name not in found:
            raise InvalidSetting(f"--load-models: {name!r}: no such model; there are {', '.join(found)}")
    return {name: found[name] for name in names}


async def serve(settings: Settings) -> bool:
    """Run a server until SIGTERM or SIGINT; a second signal ends the process at once. Returns as :meth:`Server.run`.

    Not if it follows at once: whoever signals a process and its group, as timeout(1) does, means it once.
    """
    server = Server(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    first_s = math.inf

    def on_signal() -> None:
        nonlocal first_s
        if not stop.is_set():
            first_s = time.monotonic()
            stop.set()
        elif time.monotonic() - first_s >= _SECOND_SIGNAL_SECONDS:
            log.error("second signal: ending at once")
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return await server.run(stop)
