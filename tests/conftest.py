"""Two .proto files of package ``inference`` cannot live in one process, and clients bring one of their own.

So the end-to-end tests, which use tritonclient, have a process of their own: ``make test`` runs pytest twice.
"""

import os
from pathlib import Path

import pytest

# ONNX Runtime's official builds report to their maker unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_END_TO_END = Path(__file__).parent / "e2e"


def _asks_for_end_to_end(config: pytest.Config) -> bool:
    named = [Path(config.invocation_params.dir, str(arg).partition("::")[0]).resolve() for arg in config.args]
    return bool(named) and all(path == _END_TO_END or _END_TO_END in path.parents for path in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the end-to-end tests out unless they, and nothing else, are asked for."""
    return True if collection_path == _END_TO_END and not _asks_for_end_to_end(config) else None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is left out."""
    return None if _asks_for_end_to_end(config) else "tests/e2e is left out: it needs a process of its own (make test)"
