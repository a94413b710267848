"""Bringing a repository's models up, changing them, and bringing them down in order."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preheat.errors import LoadFailed, ModelNotFound, ServerStopping, reason_of
from preheat.models.handle import Handle
from preheat.models.lifecycle import Lifecycle, State
from preheat.models.loader import Loader
from preheat.models.registry import Registry
from preheat.repository.scan import BrokenModel, ModelFolder, find_model, model_names
from preheat.telemetry.events import Observer, StateChanged

# What drained sessions get to close, all together; one that still hangs then is left behind.
_CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A version to load, and the life it begins."""

    folder: ModelFolder
    lifecycle: Lifecycle


@dataclass(frozen=True, slots=True)
class Unloaded:
    """How unloading went: requests that got an error for want of time, and models of which a session hangs."""

    abandoned: int
    hanging: int


class ModelManager:
    """Loads and unloads model versions. Its methods block; one model's failure is its own.

    Any thread may call it. Changes of one model are serialized by its lock in ``_model_locks``. ``_leaving`` has the
    handles that drain in the background; it changes, and ``_stopping`` is set, under ``_lock``.
    """

    def __init__(
        self,
        registry: Registry,
        loader: Loader,
        *,
        repositories: Sequence[Path],
        concurrency: int,
        observer: Observer,
    ) -> None:
        self._registry = registry
        self._loader = loader
        self._repositories = repositories
        self._concurrency = concurrency
        self._observer = observer
        self._lock = threading.Lock()
        self._model_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._leaving: set[Handle] = set()
        self._stopping = threading.Event()

    def declare(self, found: Mapping[str, ModelFolder | BrokenModel]) -> list[Job]:
        """Make every model known, before any is loaded: until then it is not ready, rather than unknown."""
        jobs: list[Job] = []
        for name, folder in found.items():
            if isinstance(folder, BrokenModel):
                self._mark_broken(name, folder)
            else:
                jobs += self._jobs(folder)
        return jobs

    def load(self, jobs: Sequence[Job]) -> None:
        """Load and warm what was declared, several at a time. Returns when each is READY or FAILED."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="loader") as pool:
            loads = [pool.submit(self._load, job) for job in jobs]
        for each in loads:
            each.result()

    def load_model(self, name: str) -> None:
        """Load a model as it is on disk now; what serves already goes on until its successor is warm.

        Raises ModelNotFound if no repository has it, and LoadFailed, with what failed, leaving what served before.
        """
        # Before there is a lock for it, which is kept: anyone may send any name.
        if name not in self.names_on_disk() and not self._registry.knows(name):
            raise _not_found(name)
        with self._lock_of(name):
            folder = find_model(self._repositories, name)
            if folder is None:
                raise _not_found(name)
            if isinstance(folder, BrokenModel):
                if not self._registry.handles_of(name):
                    self._mark_broken(name, folder)
                raise LoadFailed(f"load failed for model '{name}': {folder.reason}")
            serving = bool(self._registry.handles())
            failures = " ".join(filter(None, [self._load(job, serving=serving) for job in self._jobs(folder)]))
            if failures:
                log.warning("loading %s on request failed: %s", name, failures)
                raise LoadFailed(f"load failed for model '{name}': {failures}")
            for handle in self._registry.handles_of(name):
                if handle.version not in folder.versions:
                    self._retire(handle)

    def unload_model(self, name: str) -> None:
        """Serve a model no more. Returns once no request is routed to it; those in flight are finished afterwards.

        Raises ModelNotFound if it was never tried.
        """
        if not self._registry.knows(name):
            raise ModelNotFound(f"failed to unload '{name}', no such model was loaded")
        with self._lock_of(name):
            for handle in self._registry.handles_of(name):
                self._retire(handle)
            self._registry.forget_failures(name)

    def names_on_disk(self) -> list[str]:
        """The names of all models in the repositories, tried or not, sorted."""
        return model_names(self._repositories)

    def unload_all(self, timeout_s: float) -> Unloaded:
        """Drain and close every model within ``timeout_s``; nothing can be loaded any more.

        What is accepted before is answered: by its model if that is done in time, else with ServerStopping.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            self._stopping.set()
            serving = self._registry.handles()
            leaving = list(self._leaving)
        for handle in serving:
            self._registry.retire(handle)
        handles = serving + leaving
        drained = [handle.drain(max(0.0, deadline_s - time.monotonic())) for handle in handles]
        abandoned = sum(
            handle.abandon(ServerStopping("the server stopped before the request was finished"))
            for handle, done in zip(handles, drained, strict=True)
            if not done
        )
        for handle in handles:
            handle.stop_workers()
        deadline_s = time.monotonic() + _CLOSE_SECONDS
        closed = [self._close(handle, max(0.0, deadline_s - time.monotonic())) for handle in handles]
        return Unloaded(abandoned, closed.count(False))

    def _lock_of(self, name: str) -> threading.Lock:
        with self._lock:
            return self._model_locks[name]

    def _jobs(self, folder: ModelFolder) -> list[Job]:
        name = folder.configuration.name
        return [Job(folder, self._registry.begin(name, version)) for version in folder.versions]

    def _mark_broken(self, name: str, broken: BrokenModel) -> None:
        self._registry.mark_broken(name, str(broken.reason))
        self._observer(StateChanged(name, 0, State.FAILED.value, str(broken.reason)))

    def _load(self, job: Job, *, serving: bool = False) -> str:
        """Load one version and publish it; why it failed, empty if it did not. ``serving``: others serve meanwhile."""
        lifecycle = job.lifecycle
        if self._stopping.is_set():
            return self._fail(lifecycle, ServerStopping("the server is stopping"))
        log.info("%s/%d begins to load", lifecycle.model, lifecycle.version)
        try:
            loaded = self._loader.load(job.folder, lifecycle, serving=serving)
        except BaseException as exc:  # whatever a model's code raises, sys.exit() included, is this version's failure
            return self._fail(lifecycle, exc)
        with self._lock:
            stopping = self._stopping.is_set()
            replaced = None if stopping else self._registry.publish(loaded.handle)
            if replaced is not None:
                self._leaving.add(replaced)
                # Within the lock: unload_all, which takes over whoever is leaving, must not find it READY.
                replaced.lifecycle.move_to(State.DRAINING)
        if stopping:
            loaded.handle.close(_CLOSE_SECONDS)
            return self._fail(lifecycle, ServerStopping("the server is stopping"))
        self._observer(loaded.event)
        if replaced is not None:
            self._release_in_background(replaced)
        return ""

    def _fail(self, lifecycle: Lifecycle, exc: BaseException) -> str:
        if not isinstance(exc, LoadFailed | ServerStopping):
            log.error("loading %s version %d failed", lifecycle.model, lifecycle.version, exc_info=exc)
        lifecycle.move_to(State.FAILED, reason_of(exc))
        return f"version {lifecycle.version} is at UNAVAILABLE state: {reason_of(exc)};"

    def _retire(self, handle: Handle) -> None:
        """Route to ``handle`` no more, and let it go; no effect once the server is stopping, which retires all."""
        with self._lock:
            if self._stopping.is_set():
                return
            self._leaving.add(handle)
            self._registry.retire(handle)
        self._release_in_background(handle)

    def _release_in_background(self, handle: Handle) -> None:
        """Drain and close a handle in ``_leaving``, however long its requests take."""
        threading.Thread(target=self._release, args=(handle,), name=f"{handle.name} leaves", daemon=True).start()

    def _release(self, handle: Handle) -> None:
        handle.drain()
        with self._lock:
            if self._stopping.is_set():
                return  # unload_all has it
            self._leaving.discard(handle)
        handle.stop_workers()
        self._close(handle, None)

    def _close(self, handle: Handle, timeout_s: float | None) -> bool:
        """Free a drained handle; whether nothing of it is left."""
        closed = handle.close(timeout_s)
        if closed:
            handle.lifecycle.move_to(State.UNLOADED, "unloaded")
        else:
            handle.lifecycle.move_to(State.FAILED, "a session hangs, or could not be closed")
        return closed


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"failed to load '{name}', failed to poll from model repository")
