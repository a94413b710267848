"""Bringing a repository's models up, changing them when that is asked for or their folders change, and down."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from preheat.errors import LoadFailed, ModelNotFound
from preheat.models.departures import Departures, Unloaded
from preheat.models.lifecycle import Lifecycle, State
from preheat.models.planning import source_of
from preheat.models.records import Kept, Record
from preheat.models.registry import Registry
from preheat.models.swapping import Swapper
from preheat.repository.arrival import Arrival, PushedFile
from preheat.repository.names import names_aside
from preheat.repository.override import Override
from preheat.repository.scan import BrokenModel, ModelFolder, find_model, model_names, versions_on_disk
from preheat.repository.stamps import stamp_folder, stamp_model
from preheat.telemetry.events import ModelSettled, Observer, StateChanged

log = logging.getLogger(__name__)

NO_FILES: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Job:
    """A version to load, and the life it begins."""

    folder: ModelFolder
    lifecycle: Lifecycle


class ModelManager:
    """Loads, changes and unloads models. Its methods block; one model's failure is its own.

    Any thread may call it. A model's changes are serialized by its record's lock; ``_lock`` guards the records' table.
    """

    def __init__(
        self,
        registry: Registry,
        swapper: Swapper,
        departures: Departures,
        *,
        repositories: Sequence[Path],
        concurrency: int,
        observer: Observer,
    ) -> None:
        self._registry = registry
        self._swapper = swapper
        self._departures = departures
        self._repositories = repositories
        self._concurrency = concurrency
        self._observer = observer
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}

    def declare(self, found: Mapping[str, ModelFolder | BrokenModel]) -> list[Job]:
        """Make every model known, before any is loaded: until then it is not ready, rather than unknown."""
        self._registry.wait_for(found)
        jobs: list[Job] = []
        for name, folder in found.items():
            if isinstance(folder, BrokenModel):
                self._mark_broken(name, folder)
            else:
                jobs += [Job(folder, self._registry.begin(name, version)) for version in folder.versions]
        return jobs

    def load(self, jobs: Sequence[Job]) -> None:
        """Load and warm what was declared, several at a time. Returns when each is READY or FAILED."""
        models: dict[str, list[Job]] = {}
        for job in jobs:
            models.setdefault(job.lifecycle.model, []).append(job)
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="loader") as pool:
            loads = [pool.submit(self._load_first, name, each) for name, each in models.items()]
        for load in loads:
            load.result()

    def load_model(self, name: str, config: str | None = None, files: Mapping[str, bytes] = NO_FILES) -> None:
        """Load a model as it is on disk now, or as ``config`` (JSON) and ``files`` have it, whatever was asked before.

        What serves already goes on until its successor is warm. Raises ModelNotFound if no repository has it,
        InvalidRequest, and LoadFailed, with what failed, leaving what served before.
        """
        # Before there is a record of it, which is kept: anyone may send any name.
        if not files and name not in self.names_on_disk() and not self._registry.knows(name):
            raise _not_found(name)
        with self._changing(name) as record:
            found = find_model(self._repositories, name)
            override = None
            if config is not None and (files or found is not None):
                override = Override(name, config, files=files, original=None if found is None else found.path)
                found = override.folder
            if found is None:
                raise _not_found(name)
            if isinstance(found, BrokenModel):
                self._report_broken(name, found)
                raise LoadFailed(f"load failed for model '{name}': {found.reason}")
            record.follow()
            if override is not None:
                record.hold(stamp_model(self._repositories, name))
            failures = self._swapper.serve(record, found, anew=True)
            for handle in self._registry.handles_of(name):
                if override is not None and handle.completed.configuration.file.is_relative_to(override.folder.path):
                    # The folder is to last as long as what was loaded from it.
                    handle.origin = override
            if failures:
                log.warning("loading %s on request failed: %s", name, " ".join(failures))
                raise LoadFailed(f"load failed for model '{name}': {' '.join(failures)}")

    def unload_model(self, name: str) -> None:
        """Serve a model no more, until its files change. Returns once no request is routed to it.

        Those in flight are finished afterwards. Raises ModelNotFound if it was never tried.
        """
        if not self._registry.knows(name):
            raise ModelNotFound(f"failed to unload '{name}', no such model was loaded")
        with self._changing(name, hurries=True) as record:
            record.follow()
            record.hold(stamp_model(self._repositories, name))
            self._swapper.retire_all(record)
            self._registry.forget_failures(name)
            self._registry.wait_no_more(name)

    def refresh(self, name: str) -> None:
        """Serve a model as its folder is now, or no more if it is gone. Never raises: what fails is in the index."""
        if not self._registry.knows(name) and name not in self.names_on_disk():
            # It may have been waited for.
            self._registry.wait_no_more(name)
            return
        with self._changing(name) as record:
            try:
                self._refresh(record)
            except Exception:
                log.exception("bringing %s up to date failed", name)

    def receive(self, name: str, version: int, files: Sequence[PushedFile], config: str | None) -> Arrival:
        """Begin to receive a version of a model, which :meth:`place` puts where it belongs. Raises as Arrival does."""
        return Arrival(self._repositories, name, version, files, config)

    def place(self, name: str, put: Callable[[], int], *, load: bool) -> str:
        """Have ``put`` place a new version in the model's folder, which nobody looks at meanwhile; its number.

        ``load``: serve the model as its folder is then. Says what became of the version. Raises what ``put`` raises,
        and LoadFailed if what was placed cannot be served.
        """
        with self._changing(name) as record:
            version = put()
            if not load:
                return f"{name}/{version} is in the repository, and is not loaded until that is asked for"
            self._refresh(record)
            return self._tell_placed(record, version)

    def roll_back(self, name: str) -> str:
        """Serve what was served before, and go on doing so until the model's files change; what was done.

        Raises ModelNotFound if there is nothing to go back to, and LoadFailed.
        """
        if not self._registry.knows(name):
            raise ModelNotFound(f"failed to roll '{name}' back, no such model was loaded")
        with self._changing(name, hurries=True) as record:
            kept, record.kept = [each for each in record.kept if self._departures.take_back(each.handle)], []
            if kept:
                return self._roll_back_in_memory(record, kept)
            return self._roll_back_on_disk(record)

    def names_on_disk(self) -> list[str]:
        """The names of all models in the repositories, tried or not, sorted."""
        return model_names(self._repositories)

    def unload_all(self, timeout_s: float) -> Unloaded:
        """As :meth:`Departures.stop`."""
        return self._departures.stop(timeout_s)

    @contextmanager
    def _changing(self, name: str, *, hurries: bool = False) -> Iterator[Record]:
        """The model's record, for whoever changes it: one at a time. ``hurries``: no canary is waited for."""
        with self._lock:
            record = self._records.setdefault(name, Record(name))
            record.hurried += hurries
        try:
            with record.lock:
                with self._lock:
                    record.hurried -= hurries
                yield record
        finally:
            self._observer(ModelSettled(name))

    def _load_first(self, name: str, jobs: Sequence[Job]) -> None:
        """Load a model's versions when the server starts, unless a client has had its say on it before."""
        with self._changing(name) as record:
            # A client that loaded it in vain has the start try what is on disk.
            unloaded = record.held and not record.failed and self._is_as_held(record)
            if record.serving or unloaded:
                for job in jobs:
                    self._registry.give_up(job.lifecycle)
                return
            record.follow()
            for job in jobs:
                source = source_of(job.folder, job.lifecycle.version, stamp_folder(job.folder.path))
                self._swapper.load(record, job.folder, job.lifecycle, source, first=True)
            self._swapper.conclude(record, jobs[0].folder)

    def _is_as_held(self, record: Record) -> bool:
        """Whether the model's folder is as it was when a client had its say; so it counts while it cannot be read."""
        try:
            return record.holds(stamp_model(self._repositories, record.name))
        except OSError as exc:
            log.warning("%s is left as a client asked for it: its folder cannot be read: %s", record.name, exc)
            return True

    def _refresh(self, record: Record) -> None:
        """As :meth:`refresh`, with the record's lock held."""
        name = record.name
        stamp = stamp_model(self._repositories, name)
        if self._departures.stopping.is_set() or record.holds(stamp):
            return
        record.follow()
        folder = find_model(self._repositories, name)
        if folder is None:
            log.info("%s is in no repository any more", name)
            self._swapper.retire_all(record)
            self._registry.forget(name)
            self._registry.wait_no_more(name)
        elif isinstance(folder, BrokenModel):
            if stamp is not None and not stamp.versions:
                self._swapper.retire_all(record)
            self._report_broken(name, folder)
        else:
            self._swapper.serve(record, folder)

    def _report_broken(self, name: str, broken: BrokenModel) -> None:
        if self._registry.handles_of(name):
            log.error("%s goes on as it was: %s", name, broken.reason)
            self._registry.note(name, f"serves what was there before: {broken.reason}")
        else:
            self._mark_broken(name, broken)

    def _mark_broken(self, name: str, broken: BrokenModel) -> None:
        self._registry.mark_broken(name, str(broken.reason))
        self._observer(StateChanged(name, 0, State.FAILED.value, str(broken.reason)))

    def _tell_placed(self, record: Record, version: int) -> str:
        subject = f"{record.name}/{version}"
        if version in record.serving:
            return f"{subject} is READY"
        reason = self._registry.reason(record.name, version)
        if reason:
            raise LoadFailed(f"{subject} is in the repository, but is not served: {reason}")
        return f"{subject} is in the repository; its version_policy wants others"

    def _roll_back_in_memory(self, record: Record, kept: Sequence[Kept]) -> str:
        """Route to what was kept, and put aside on disk what the next start would take instead."""
        name, newer = record.name, sorted(record.came)
        self._swapper.put_back(record, kept)
        versions = " and ".join(f"{name}/{each.handle.version}" for each in kept)
        told = [f"{versions} serves again, which was in memory still"]
        try:
            told += [self._put_aside(name, each) for each in newer]
        except (LoadFailed, OSError) as exc:
            told.append(f"until its files change, or the server starts anew: {exc}")
        if not newer:
            told.append("until its files change, or the server starts anew: those it was loaded from are gone")
        record.hold(stamp_model(self._repositories, name))
        self._registry.note(name, f"rolled back to {versions}")
        return "; ".join(told)

    def _roll_back_on_disk(self, record: Record) -> str:
        """Put aside the newest version that serves, and whatever failed after it, and load the one before."""
        name = record.name
        newest = max(record.serving, default=None)
        folder = find_model(self._repositories, name)
        there = [] if folder is None or newest is None else versions_on_disk(folder.path)
        before = [version for version in there if newest is not None and version < newest]
        if newest is None or not before:
            there_is = "it does not serve" if newest is None else f"there is no version before {newest} on disk"
            raise ModelNotFound(f"failed to roll '{name}' back: nothing that it was is in memory, and {there_is}")
        try:
            told = [self._put_aside(name, version) for version in there if version >= newest]
        except OSError as exc:
            raise LoadFailed(f"failed to roll '{name}' back: version {newest} cannot be put aside: {exc}") from exc
        self._refresh(record)
        return "; ".join([self._tell_placed(record, before[-1]), *told])

    def _put_aside(self, name: str, version: int) -> str:
        """Rename a version's folder, so that it is none any more; what was done. Raises LoadFailed, OSError."""
        folder = find_model(self._repositories, name)
        if folder is None:
            raise LoadFailed(f"'{name}' is in no repository")
        policy = None if isinstance(folder, BrokenModel) else folder.configuration.proto.version_policy
        if policy is not None and policy.WhichOneof("policy_choice") == "specific":
            raise LoadFailed(f"version_policy: specific: names version {version}: take it out there")
        aside = next(path for name in names_aside(version) if not (path := folder.path / name).exists())
        (folder.path / str(version)).rename(aside)
        return f"version {version} is put aside as {aside}"


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"failed to load '{name}', failed to poll from model repository")
