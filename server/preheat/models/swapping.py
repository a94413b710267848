"""Serving a model as its folder is now: what is new beside what is old, one step from one to the other."""

import logging
from collections.abc import Mapping, Sequence, Set

from preheat.errors import InvalidArtifact, LoadFailed, ServerStopping, reason_of
from preheat.memory.process import available_bytes
from preheat.models.canary import judge
from preheat.models.departures import Departures
from preheat.models.handle import Handle
from preheat.models.lifecycle import Lifecycle, State
from preheat.models.loader import Loaded, Loader
from preheat.models.planning import Source, plan, source_of
from preheat.models.records import Kept, Record
from preheat.models.registry import Registry
from preheat.repository.integrity import check_version
from preheat.repository.scan import ModelFolder
from preheat.repository.server_parameters import Swap
from preheat.repository.stamps import stamp_folder
from preheat.telemetry.events import Observer

log = logging.getLogger(__name__)

# What has to be left of the memory for a version to be kept that is not served any more: its files twice, and this.
_SPARE_BYTES = 2**30


class Swapper:
    """Makes what is served of a model what its folder wants. Any thread; callers hold the record's lock, and it blocks.

    A version that fails leaves what served before, and is not tried again until it is another, or that is asked for.
    """

    def __init__(
        self, registry: Registry, loader: Loader, departures: Departures, *, keep_s: float, observer: Observer
    ) -> None:
        """``keep_s``: how long what was replaced stays in memory, where there is room, in case it is wanted back."""
        self._registry = registry
        self._loader = loader
        self._departures = departures
        self._keep_s = keep_s
        self._observer = observer

    def serve(self, record: Record, folder: ModelFolder, *, anew: bool = False) -> Sequence[str]:
        """Load, change and retire versions until those that ``folder`` wants are served; why some are not.

        ``anew``: load them also where nothing has changed.
        """
        stamp = stamp_folder(folder.path)
        wanted = {version: source_of(folder, version, stamp) for version in folder.versions}
        if anew:
            record.failed.clear()
        failed = record.failed
        steps = plan({} if anew else record.serving, wanted, failed)
        resized = [version for version in steps.resize if self._resize(record, folder, wanted[version], version)]
        loads: Sequence[int] = sorted({*steps.load, *steps.resize} - set(resized))
        damaged: dict[int, str] = {}
        if folder.configuration.server.swap is Swap.REPLACE:
            damaged = self._refuse_damaged(record, folder, wanted, loads)
            if set(loads) - set(damaged):
                # What was damaged in place serves on as it was.
                vain = {each for each, source in wanted.items() if failed.get(each) == source}
                self._make_way(record, spared=vain)
                loads = plan({}, wanted, failed).load
        before, earlier = set(record.serving), record.kept
        record.kept = []
        tried = (self._load_anew(record, folder, each, wanted[each]) for each in loads if each not in damaged)
        failures = [failure for failure in (*damaged.values(), *tried) if failure]
        self._conclude(record, folder, wanted)
        if record.kept or set(record.serving) - before:
            self._forget(earlier)
            record.came = set(record.serving) - before
        else:
            record.kept = earlier
        return failures

    def load(
        self, record: Record, folder: ModelFolder, lifecycle: Lifecycle, source: Source, *, first: bool = False
    ) -> str:
        """Load one version and route to it; why it failed, empty if it did not.

        ``first``: the server starts, and nobody is served who could be kept waiting, or told from.
        """
        version = lifecycle.version
        if self._departures.stopping.is_set():
            return self._fail(record, lifecycle, source, ServerStopping("the server is stopping"))
        log.info("%s/%d begins to load", lifecycle.model, version)
        try:
            if not first:
                self._check(record, folder, source, version)
            loaded = self._loader.load(folder, lifecycle, serving=not first and bool(self._registry.handles()))
            replaced = self._publish(record, folder, loaded, None if first else source)
        except BaseException as exc:  # whatever a model's code raises, sys.exit() included, is this version's failure
            return self._fail(record, lifecycle, source, exc)
        if replaced is not None:
            self._let_go(record, Kept(replaced, record.serving.get(version, source)))
        record.serving[version] = source
        record.failed.pop(version, None)
        self._observer(loaded.event)
        return ""

    def conclude(self, record: Record, folder: ModelFolder) -> None:
        """What follows once every wanted version was tried for the first time."""
        stamp = stamp_folder(folder.path)
        self._conclude(record, folder, {each: source_of(folder, each, stamp) for each in folder.versions})

    def put_back(self, record: Record, kept: Sequence[Kept]) -> None:
        """Serve what was kept, which the caller has, instead of what the last change brought. Raises ServerStopping."""
        for each in kept:
            version = each.handle.version
            each.handle.lifecycle = self._registry.begin(record.name, version)
            try:
                replaced = self._departures.publish(each.handle)
            except ServerStopping:
                self._departures.discard(each.handle)
                raise
            if replaced is not None:
                self._departures.let_go(replaced)
            record.serving[version] = each.source
        for handle in self._registry.handles_of(record.name):
            if handle.version in record.came and self._departures.retire(handle):
                self._departures.let_go(handle)
                record.serving.pop(handle.version, None)
        record.came = set()

    def retire_all(self, record: Record) -> None:
        """Serve nothing of the model any more, and keep nothing of it."""
        for handle in self._registry.handles_of(record.name):
            if self._departures.retire(handle):
                self._departures.let_go(handle)
        record.serving.clear()
        record.failed.clear()
        self._forget(record.kept)
        record.kept, record.came = [], set()

    def _load_anew(self, record: Record, folder: ModelFolder, version: int, source: Source) -> str:
        return self.load(record, folder, self._registry.begin(record.name, version), source)

    def _check(self, record: Record, folder: ModelFolder, source: Source, version: int) -> None:
        """Raise LoadFailed for what is not whole, or has no room beside what is served."""
        check_version(folder.path / str(version))
        if not record.serving:
            return
        size = sum(file.size for file in source.files)
        left = available_bytes()
        if left is not None and left < size and self._release(record.kept):
            record.kept = []
            left = available_bytes()
        if left is not None and left < size:
            raise LoadFailed(
                f"{folder.path / str(version)} has {size / 2**20:.0f} MiB, which do not fit beside what is served: "
                f"{left / 2**20:.0f} MiB are left; set preheat.swap: replace to have that freed before, and nothing "
                "served meanwhile"
            )

    def _refuse_damaged(
        self, record: Record, folder: ModelFolder, wanted: Mapping[int, Source], versions: Sequence[int]
    ) -> dict[int, str]:
        """Fail those of ``versions`` that are not whole, for which nothing that is served is to make way; and why."""
        damaged = {}
        for version in versions:
            try:
                check_version(folder.path / str(version))
            except LoadFailed as exc:
                lifecycle = self._registry.begin(record.name, version)
                damaged[version] = self._fail(record, lifecycle, wanted[version], exc)
        return damaged

    def _publish(self, record: Record, folder: ModelFolder, loaded: Loaded, source: Source | None) -> Handle | None:
        """Route to what was loaded, if it does as well as what served before, and is still what lies there.

        ``source`` None: that is not looked at.
        """
        handle = loaded.handle
        try:
            if source is not None:
                _check_unchanged(folder, handle.version, source)
            self._try(record, folder, handle)
            return self._departures.publish(handle)
        except BaseException:
            self._departures.discard(handle)
            raise

    def _try(self, record: Record, folder: ModelFolder, candidate: Handle) -> None:
        """Have it asked what the one before is, where the model has a canary. Raises LoadFailed if it is refused."""
        policy = folder.configuration.server.canary
        if policy is not None:
            candidate.keep_requests()
        serving = {handle.version: handle for handle in self._registry.handles_of(candidate.name)}
        if policy is None or not serving:
            return
        before = serving.get(candidate.version) or serving[max(serving)]
        before.keep_requests()
        verdict = judge(before, candidate, policy, lambda: self._why_not_wait(record))
        if not verdict.accepted:
            raise LoadFailed(f"the canary stays aside, and version {before.version} goes on: {verdict.text}")

    def _why_not_wait(self, record: Record) -> str:
        """Why a canary is given up; empty if it is not."""
        if self._departures.stopping.is_set():
            return "the server is stopping"
        return "the model is unloaded or rolled back" if record.hurried else ""

    def _resize(self, record: Record, folder: ModelFolder, source: Source, version: int) -> bool:
        """Change the number of instances in place; False if it has to be loaded for that."""
        handle = next(each for each in self._registry.handles_of(record.name) if each.version == version)
        try:
            if not self._loader.resize(folder, handle):
                return False
        # Whatever a backend raises as it opens one more.
        except Exception as exc:
            log.error(  # noqa: TRY400 - a defect has its trace
                "%s/%d keeps its instances: %s", record.name, version, reason_of(exc),
                exc_info=None if isinstance(exc, LoadFailed) else exc,
            )  # fmt: skip
            record.failed[version] = source
            self._registry.note(record.name, reason_of(exc))
            return True
        record.serving[version] = source
        record.failed.pop(version, None)
        return True

    def _make_way(self, record: Record, *, spared: Set[int]) -> None:
        """Free what is served of the model but versions that are ``spared``, and wait until that is done.

        There is no room for both.
        """
        for handle in self._registry.handles_of(record.name):
            if handle.version not in spared and self._departures.retire(handle):
                self._departures.release(handle)
                record.serving.pop(handle.version, None)
        self._forget(record.kept)
        record.kept = []

    def _conclude(self, record: Record, folder: ModelFolder, wanted: dict[int, Source]) -> None:
        """Retire what is not wanted any more; or if not all that is wanted is served, see that something is."""
        name = record.name
        missing = [version for version, source in wanted.items() if record.serving.get(version) != source]
        if not missing:
            self._retire_others(record, folder, set(wanted))
            self._registry.note(name, "")
            self._registry.wait_no_more(name)
        elif not record.serving and self._fall_back(record, folder):
            self._registry.wait_no_more(name)

    def _retire_others(self, record: Record, folder: ModelFolder, wanted: set[int]) -> None:
        for handle in self._registry.handles_of(record.name):
            if handle.version not in wanted and self._departures.retire(handle):
                self._let_go(record, Kept(handle, record.serving.pop(handle.version)))
        stamp = stamp_folder(folder.path)
        there = wanted.union(stamp.versions if stamp else ())
        for version in self._registry.versions_of(record.name) - there:
            self._registry.forget_version(record.name, version)

    def _fall_back(self, record: Record, folder: ModelFolder) -> bool:
        """Serve an earlier version, where the policy wants the latest and none of these can be."""
        if folder.configuration.proto.version_policy.WhichOneof("policy_choice") not in (None, "latest"):
            return False
        stamp = stamp_folder(folder.path)
        for version in sorted(stamp.versions if stamp else (), reverse=True):
            if version in folder.versions:
                continue
            source = source_of(folder, version, stamp)
            if record.failed.get(version) == source:
                continue
            log.warning("%s: no version that is wanted can be served; trying %d, which is older", record.name, version)
            if not self._load_anew(record, folder, version, source):
                return True
        return False

    def _let_go(self, record: Record, gone: Kept) -> None:
        """Let go of what was replaced: after a while, if there is room for it until then; a GPU's is not known."""
        size = sum(file.size for file in gone.source.files)
        left = available_bytes()
        on_host = all(source.device == "cpu" for source in gone.handle.engines.cached.sources)
        if self._keep_s and on_host and (left is None or left >= 2 * size + _SPARE_BYTES):
            record.kept.append(gone)
            self._departures.let_go(gone.handle, keep_s=self._keep_s)
        else:
            self._departures.let_go(gone.handle)

    def _forget(self, kept: Sequence[Kept]) -> None:
        """Have freed what is kept."""
        for each in kept:
            self._departures.let_go_kept(each.handle)

    def _release(self, kept: Sequence[Kept]) -> bool:
        """Free what is kept, and wait until that is done; whether there was any."""
        return sum(self._departures.release_kept(each.handle) for each in kept) > 0

    def _fail(self, record: Record, lifecycle: Lifecycle, source: Source, exc: BaseException) -> str:
        """Note why a version is not served; in words that begin as Triton's."""
        version, reason = lifecycle.version, reason_of(exc)
        if not isinstance(exc, LoadFailed | ServerStopping):
            log.error("loading %s version %d failed", lifecycle.model, version, exc_info=exc)
        record.failed[version] = source
        lifecycle.move_to(State.FAILED, reason)
        if version in record.serving:
            # It speaks for the one that goes on: nobody hears of this one otherwise.
            log.error("%s/%d goes on as it was: %s", lifecycle.model, version, reason)
            self._registry.note(lifecycle.model, f"serves what was there before: {reason}")
        return f"version {version} is at UNAVAILABLE state: {reason};"


def _check_unchanged(folder: ModelFolder, version: int, source: Source) -> None:
    """Raise InvalidArtifact if something else lies there than what was loaded: half of each may have been.

    What has come beside it, such as what the model has written, is another matter: it is looked at once it rests.
    """
    now = source_of(folder, version, stamp_folder(folder.path))
    same = now.configuration == source.configuration and now.instance_groups == source.instance_groups
    if not (same and {*source.shared} <= {*now.shared} and {*source.files} <= {*now.files}):
        raise InvalidArtifact(f"{folder.path} changed while it was loaded; it is loaded again once it rests")
