"""One load's dealings with the compile cache: a folder for each source, kept once the model is warm."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from preheat.backend import Backend, ModelSource, Signature
from preheat.cache import CacheKey, CompileCache, Entry
from preheat.scheduling.warming import WarmupReport

log = logging.getLogger(__name__)

# Longer than any compilation that anyone would wait for; then the load goes on without what it waited for.
_WAIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class CachedSources:
    """The sources of one load, those with a folder of the cache pointing to it. Belongs to the load, then to the model.

    ``entries`` are empty where there is no cache, or the backend leaves nothing in one. ``unchanged`` says whether the
    artifacts are still those that the entries are found by.
    """

    sources: Sequence[ModelSource]
    entries: Sequence[Entry] = ()
    unchanged: Callable[[], bool] = lambda: True

    @property
    def cold(self) -> bool:
        """Whether something will have to be compiled that could be found in a cache."""
        return any(entry.path is not None and not entry.warm for entry in self.entries)

    @property
    def record(self) -> Mapping[str, Any]:
        """What the load that filled the first folder said of it; empty if that is this one."""
        return self.entries[0].record if self.entries else {}

    def store(self, reports: Sequence[WarmupReport], seconds: float) -> None:
        """Keep what the load left, with what it took. Slow. Never raises for what is on the disk."""
        source = self.sources[0]
        if not self.unchanged():
            log.warning("compile cache: %s/%d changed while it was loaded; not stored", source.name, source.version)
            for entry in self.entries:
                entry.release()
            return
        built = any(not each.cached for report in reports for step in report.steps for each in step.built)
        for entry in self.entries:
            if entry.warm and not built and not entry.grown:
                continue
            record = {"model": source.name, "version": source.version, "seconds": seconds, "steps": _steps(reports)}
            entry.store({**record, **entry.record})

    def abandon(self, reason: str) -> None:
        """The load failed: what it was given may be why, so the next one starts without."""
        for entry in self.entries:
            if entry.warm:
                entry.discard(reason)
        self.close()

    def close(self) -> None:
        """Remove the folders, when nothing of them is in use. Idempotent."""
        for entry in self.entries:
            entry.close()


def open_cached(
    cache: CompileCache | None, backend: Backend, sources: Sequence[ModelSource], signature: Signature
) -> CachedSources:
    """Give each source its folder. Blocks while another load, here or in another process, fills the same."""
    environments = [backend.environment(source) for source in sources] if cache is not None else []
    if cache is None or None in environments:
        return CachedSources(sources)
    keyed = partial(_keys, cache, type(backend).__name__, [each or "" for each in environments], sources, signature)
    try:
        keys = keyed()
    except OSError as exc:
        log.warning("compile cache: %s is loaded without it: %s", sources[0].name, exc)
        return CachedSources(sources)
    entries = _open_all(cache, keys, sources[0])
    placed = [replace(source, cache_path=entries[key].path) for source, key in zip(sources, keys, strict=True)]
    return CachedSources(placed, [entries[key] for key in keys], unchanged=lambda: _same(keyed, keys))


def _keys(
    cache: CompileCache,
    backend: str,
    environments: Sequence[str],
    sources: Sequence[ModelSource],
    signature: Signature,
) -> list[CacheKey]:
    return [
        cache.key(
            backend=backend,
            environment=environment,
            folder=source.version_path,
            configuration=_compiled_from(source, signature),
        )
        for environment, source in zip(environments, sources, strict=True)
    ]


def _same(keyed: Callable[[], list[CacheKey]], keys: list[CacheKey]) -> bool:
    try:
        return keyed() == keys
    except OSError:
        return False


def _open_all(cache: CompileCache, keys: Sequence[CacheKey], source: ModelSource) -> dict[CacheKey, Entry]:
    """Open each key once, in an order that is the same for every server: an entry that is filled is locked."""
    subject = f"{source.name}/{source.version}"
    entries: dict[CacheKey, Entry] = {}
    try:
        for key in sorted(set(keys), key=str):
            entries[key] = cache.open(key, subject=subject, ignored=_NOT_WORTH_STORING, wait_s=_WAIT_SECONDS)
    except BaseException:
        for entry in entries.values():
            entry.close()
        raise
    return entries


# Locks of the compilers, which mean nothing to anyone else.
_NOT_WORTH_STORING = ("*.lock", "locks/*", "*/locks/*")


def _compiled_from(source: ModelSource, signature: Signature) -> Mapping[str, Any]:
    """What of a configuration compiled code may depend on: not the name, for one, nor how requests queue."""
    return {
        "signature": repr(signature),
        "artifact": source.artifact_name,
        "parameters": dict(source.parameters),
        "input": source.config.get("input"),
        "output": source.config.get("output"),
        "max_batch_size": source.config.get("max_batch_size"),
        "buckets": [source.buckets.rows, sorted(source.buckets.sizes.items()), source.buckets.outside.value],
        "device": source.device,
        "threads": source.threads,
    }


def _steps(reports: Sequence[WarmupReport]) -> list[dict[str, Any]]:
    """What each bucket took to compile, in the first pass of whichever instance compiled it."""
    return [
        {"bucket": step.label, "seconds": round(step.seconds, 3), "compiled": len(step.built)}
        for report in reports
        for step in report.steps
        if step.number == 1 and step.built
    ]
