"""Finding backends: entry points of the group ``preheat.backends``, imported only when a model asks for one."""

import importlib.metadata
import threading
from collections.abc import Sequence

from preheat.backend import Backend
from preheat.errors import BackendMissing

GROUP = "preheat.backends"

_made: dict[str, Backend] = {}
# One is imported at a time: libraries whose modules import one another do not bear two threads at it.
_making = threading.Lock()


def backend_names() -> list[str]:
    """The names of the backends that are declared, installed or not, sorted."""
    return sorted(_entry_points())


def extras_of(name: str) -> Sequence[str]:
    """The extras of its distribution that backend ``name`` needs."""
    return _entry_points()[name].extras


def load_backend(name: str) -> Backend:
    """The backend called ``name``, made once per process. Any thread; one that is made keeps nobody waiting.

    Raises BackendMissing saying what to install, or which names there are.
    """
    if name not in _made:
        with _making:
            if name not in _made:
                _made[name] = _make_backend(name)
    return _made[name]


def _make_backend(name: str) -> Backend:
    entry_points = _entry_points()
    if name not in entry_points:
        raise BackendMissing(f"unknown backend '{name}'; there are {', '.join(sorted(entry_points))}")
    entry_point = entry_points[name]
    try:
        backend = entry_point.load()()
    # Not only ImportError: some libraries raise bare exceptions when what they link against is absent.
    except Exception as exc:
        raise BackendMissing(f"backend '{name}' cannot be used: {exc}; {_hint(entry_point)}") from exc
    if not isinstance(backend, Backend):
        raise BackendMissing(f"backend '{name}': {entry_point.value} is no preheat.backend.Backend")
    return backend


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry_point.name: entry_point for entry_point in importlib.metadata.entry_points(group=GROUP)}


def _hint(entry_point: importlib.metadata.EntryPoint) -> str:
    """How to install what it needs."""
    distribution = entry_point.dist.name if entry_point.dist else "preheat"
    extras = f"[{','.join(entry_point.extras)}]" if entry_point.extras else ""
    return f"it needs: pip install '{distribution}{extras}'"
