"""Two .proto files of package ``inference`` cannot live in one process, and clients bring one of their own.

So tests that use tritonclient, end to end and on a GPU, have a process of their own: ``make test`` runs pytest twice.
"""

import os
from pathlib import Path

import pytest

# ONNX Runtime's official builds report to their maker unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_OF_CLIENTS = tuple(Path(__file__).parent / name for name in ("e2e", "gpu"))


def _asks_for_clients(config: pytest.Config) -> bool:
    named = [Path(config.invocation_params.dir, str(arg).partition("::")[0]).resolve() for arg in config.args]
    return bool(named) and all(any(path.is_relative_to(folder) for folder in _OF_CLIENTS) for path in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests of clients out unless they, and nothing else, are asked for."""
    return True if collection_path in _OF_CLIENTS and not _asks_for_clients(config) else None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is left out."""
    return None if _asks_for_clients(config) else "tests/e2e and tests/gpu are left out: they need their own process"
