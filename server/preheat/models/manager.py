"""Bringing a repository's models up, and down again in order."""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from preheat.errors import LoadFailed, ServerStopping
from preheat.models.lifecycle import Lifecycle, State
from preheat.models.loader import Loader, reason_of
from preheat.models.registry import Registry
from preheat.repository.scan import BrokenModel, ModelFolder
from preheat.telemetry.events import Observer, StateChanged

_CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A version to load, and the life it begins."""

    folder: ModelFolder
    version: int
    lifecycle: Lifecycle


@dataclass(frozen=True, slots=True)
class Unloaded:
    """How unloading went.

    Requests that were answered with an error for want of time, and models whose session hangs.
    """

    abandoned: int
    hanging: int


class ModelManager:
    """Loads and unloads model versions. Its methods block; one model's failure is its own."""

    def __init__(self, registry: Registry, loader: Loader, *, concurrency: int, observer: Observer) -> None:
        self._registry = registry
        self._loader = loader
        self._concurrency = concurrency
        self._observer = observer

    def declare(self, found: Mapping[str, ModelFolder | BrokenModel]) -> list[Job]:
        """Make every model known, before any is loaded.

        Until its load is done, a model is not ready rather than unknown.
        """
        jobs: list[Job] = []
        for name, folder in found.items():
            if isinstance(folder, BrokenModel):
                self._registry.mark_broken(name, str(folder.reason))
                self._observer(StateChanged(name, 0, State.FAILED.value, str(folder.reason)))
            else:
                jobs += [Job(folder, version, self._registry.begin(name, version)) for version in folder.versions]
        return jobs

    def load(self, jobs: Sequence[Job]) -> None:
        """Load and warm what was declared, several at a time. Returns when each is READY or FAILED."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="loader") as pool:
            loads = [pool.submit(self._load, job) for job in jobs]
        for each in loads:
            each.result()

    def unload_all(self, timeout_s: float) -> Unloaded:
        """Drain and close every model within ``timeout_s``.

        What is accepted before is answered, from its model if it is done in time, else with ServerStopping.
        """
        deadline_s = time.monotonic() + timeout_s
        handles = self._registry.handles()
        lifecycles = [self._registry.retire(handle) for handle in handles]
        drained = [handle.drain(max(0.0, deadline_s - time.monotonic())) for handle in handles]
        abandoned = sum(
            handle.abandon(ServerStopping("the server stopped before the request was finished"))
            for handle, done in zip(handles, drained, strict=True)
            if not done
        )
        # Drained workers end at once; one that hangs in its session gets a moment, then is left behind.
        closed = [handle.close(_CLOSE_SECONDS) for handle in handles]
        for lifecycle, done in zip(lifecycles, closed, strict=True):
            lifecycle.move_to(State.UNLOADED if done else State.FAILED, "unloaded" if done else "a session hangs")
        return Unloaded(abandoned, closed.count(False))

    def _load(self, job: Job) -> None:
        try:
            loaded = self._loader.load(job.folder, job.version)
        except (Exception, SystemExit) as exc:
            if not isinstance(exc, LoadFailed):
                log.exception("loading %s version %d failed", job.folder.configuration.name, job.version)
            job.lifecycle.move_to(State.FAILED, reason_of(exc))
        else:
            self._registry.publish(loaded.handle, job.lifecycle)
            self._observer(loaded.event)
