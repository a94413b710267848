"""A load's share of the compile cache: a folder each, kept only if it is of what was loaded."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from preheat.backend import Dimension, ModelSource, Signature, TensorSpec
from preheat.cache import CompileCache
from preheat.compilations import Compilation, CompilationKind
from preheat.models.caching import CachedSources, open_cached
from preheat.scheduling.warming import WarmupReport, WarmupStep
from preheat.tensors import DataType
from preheat_backends.double import DoubleBackend

SIGNATURE = Signature((TensorSpec("x", DataType.FP32, (Dimension("length", 1, 64),)),), (), 1)
COMPILED = WarmupReport(1.5, [WarmupStep("batch 1", 1, 1.5, 0, (Compilation(CompilationKind.GRAPH, "x[1,2]", 1.4),))])


class CompilingBackend(DoubleBackend):
    """A backend whose code depends on nothing but the device."""

    def environment(self, source: ModelSource) -> str | None:
        return source.device


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("first")
    return ModelSource("m", 1, version_path=folder, config_path=folder.parent / "config.pbtxt")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CompileCache]:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    with closing(CompileCache(directory, max_bytes=2**20)) as cache:
        yield cache


def fill(cached: CachedSources) -> None:
    """Do as a load that compiles: leave a file in each folder, and keep it."""
    for source in cached.sources:
        assert source.cache_path is not None
        (source.cache_path / "code").write_text(source.device)
    cached.store([COMPILED], 2.0)
    cached.close()


def restored(cache: CompileCache, sources: Sequence[ModelSource]) -> list[str]:
    """What a second load finds in its folders; empty texts where it would have to compile."""
    cached = open_cached(cache, CompilingBackend(), sources, SIGNATURE)
    files = [source.cache_path / "code" for source in cached.sources if source.cache_path is not None]
    texts = [file.read_text() if file.exists() else "" for file in files]
    cached.close()
    return texts


def test_each_device_has_a_folder_of_its_own_and_finds_it_again(cache: CompileCache, source: ModelSource) -> None:
    # In an order that is not the one in which they are locked.
    sources = [replace(source, device=device) for device in ("cuda:1", "cpu", "cuda:0")]
    cached = open_cached(cache, CompilingBackend(), sources, SIGNATURE)
    assert cached.cold
    fill(cached)
    assert restored(cache, sources) == ["cuda:1", "cpu", "cuda:0"]
    again = open_cached(cache, CompilingBackend(), sources, SIGNATURE)
    assert not again.cold
    assert again.record["steps"] == [{"bucket": "batch 1", "seconds": 1.5, "compiled": 1}]
    again.close()


def test_what_a_later_load_adds_is_kept_too_though_it_compiled_nothing(
    cache: CompileCache, source: ModelSource
) -> None:
    cached = open_cached(cache, CompilingBackend(), [source], SIGNATURE)
    fill(cached)
    again = open_cached(cache, CompilingBackend(), [source], SIGNATURE)
    (path,) = [each.cache_path for each in again.sources]
    assert path is not None
    (path / "graph").write_text("found while tracing")
    again.store([WarmupReport()], 0.1)
    again.close()
    third = open_cached(cache, CompilingBackend(), [source], SIGNATURE)
    (path,) = [each.cache_path for each in third.sources]
    assert path is not None
    assert {each.name for each in path.iterdir()} == {"code", "graph"}
    assert third.record["seconds"] == 2.0
    third.close()


def test_an_artifact_that_changes_while_it_is_loaded_is_not_stored(
    cache: CompileCache, source: ModelSource, caplog: pytest.LogCaptureFixture
) -> None:
    cached = open_cached(cache, CompilingBackend(), [source], SIGNATURE)
    (source.version_path / "model.py").write_text("second")
    fill(cached)
    assert "m/1 changed while it was loaded; not stored" in caplog.text
    assert restored(cache, [source]) == [""]


def test_what_is_not_stored_can_be_loaded_by_others_while_the_model_still_serves(
    cache: CompileCache, source: ModelSource
) -> None:
    serving = open_cached(cache, CompilingBackend(), [source], SIGNATURE)
    code = source.version_path / "model.py"
    first = code.read_text()
    code.write_text("second")
    serving.store([COMPILED], 2.0)
    code.write_text(first)
    # Would wait for the lock for an hour.
    assert restored(cache, [source]) == [""]
    serving.close()


def test_code_compiled_for_other_bounds_is_not_found(cache: CompileCache, source: ModelSource) -> None:
    fill(open_cached(cache, CompilingBackend(), [source], SIGNATURE))
    longer = replace(SIGNATURE, inputs=(TensorSpec("x", DataType.FP32, (Dimension("length", 1, 4096),)),))
    found = open_cached(cache, CompilingBackend(), [source], longer)
    assert found.cold
    found.close()


def test_what_a_failed_load_was_given_is_dropped(cache: CompileCache, source: ModelSource) -> None:
    fill(open_cached(cache, CompilingBackend(), [source], SIGNATURE))
    open_cached(cache, CompilingBackend(), [source], SIGNATURE).abandon("it crashed")
    assert restored(cache, [source]) == [""]


def test_an_artifact_that_cannot_be_read_is_loaded_without_the_cache(
    cache: CompileCache, source: ModelSource, caplog: pytest.LogCaptureFixture
) -> None:
    (source.version_path / "loop").symlink_to(source.version_path)
    cached = open_cached(cache, CompilingBackend(), [source], SIGNATURE)
    assert (cached.sources, list(cached.entries)) == ([source], [])
    assert "m is loaded without it" in caplog.text


def test_a_backend_that_leaves_nothing_is_given_nothing(cache: CompileCache, source: ModelSource) -> None:
    assert open_cached(cache, DoubleBackend(), [source], SIGNATURE) == CachedSources([source])
    assert open_cached(None, CompilingBackend(), [source], SIGNATURE) == CachedSources([source])
