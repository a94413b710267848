"""A cache of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.cache.loads import LIMIT

from preheat.cache import CompileCache, open_cache


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Iterator[CompileCache]:
    opened = open_cache(str(directory), max_bytes=LIMIT)
    assert opened is not None
    yield opened
    opened.close()
