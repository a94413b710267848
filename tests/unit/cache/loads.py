"""Loads of a model that does not exist, for the tests of the cache."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from preheat.cache import CacheKey, CompileCache, make_key

CODE = {
    "graph.py": b"def call(args): ...\n" * 40,
    "libs/kernel.so": bytes(range(256)) * 9,
    "libs/empty": b"",
    "deep/er/best_config": b'{"block": 64}',
}
RECORD = {"model": "bert", "seconds": {"1": 12.5, "8": 30.25}}
LIMIT = 1 << 30


def key_of(name: str = "one", *, environment: str = "torch 2.13, AVX512") -> CacheKey:
    return make_key(backend="double", environment=environment, artifacts={"model.py": name}, configuration={"max": 8})


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Leave ``files`` in ``folder`` as a backend would."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def store(cache: CompileCache, key: CacheKey, files: Mapping[str, bytes] = CODE) -> None:
    """A cold load that goes well."""
    with cache.open(key) as entry:
        assert entry.path is not None
        fill(entry.path, files)
        entry.store(RECORD)


def restored(cache: CompileCache, key: CacheKey) -> dict[str, bytes] | None:
    """What a load is given; None if it is cold."""
    with cache.open(key) as entry:
        assert entry.path is not None
        found = contents(entry.path)
        if not entry.warm:
            assert found == {}
            return None
        assert entry.record == RECORD
        return found


@contextmanager
def logged() -> Iterator[list[str]]:
    """What the cache says in the meantime."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("preheat.cache")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
