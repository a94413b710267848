"""Which model versions there are, in what state, and where requests for them go."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from preheat.errors import InvalidRequest, ModelNotFound, ModelUnavailable
from preheat.models.handle import Handle
from preheat.models.lifecycle import Lifecycle, State
from preheat.telemetry.events import Observer


@dataclass(frozen=True, slots=True)
class _Routes:
    """Handles by version, ascending, and the newest of them."""

    handles: Mapping[int, Handle]
    newest: Handle


class Registry:
    """All model versions. Any thread may call it.

    ``_routes`` is replaced whole under ``_lock`` and read without it, so a lookup costs two dictionary reads and sees
    either all of a change or nothing. ``_lifecycles`` and ``_broken`` change under ``_lock``.
    """

    def __init__(self, *, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._routes: Mapping[str, _Routes] = {}
        self._lifecycles: dict[str, dict[int, Lifecycle]] = {}
        self._broken: dict[str, str] = {}

    def find(self, model: str, version: str) -> Handle:
        """The handle that serves ``version``, or the newest READY one if empty.

        Raises ModelNotFound, ModelUnavailable, or InvalidRequest for a version that is no whole number above 0.
        """
        routes = self._routes.get(model)
        if routes is not None:
            if not version:
                return routes.newest
            handle = routes.handles.get(_parse_version(version))
            if handle is not None:
                return handle
        raise self._explain_missing(model, version)

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a request for it would be accepted; an unknown model is not ready rather than an error."""
        try:
            self.find(model, version)
        except (ModelNotFound, ModelUnavailable):
            return False
        return True

    def all_ready(self) -> bool:
        """Whether every version of every model is READY, apart from those unloaded on purpose."""
        with self._lock:
            states = [life.state for versions in self._lifecycles.values() for life in versions.values()]
            return not self._broken and all(state in (State.READY, State.UNLOADED) for state in states)

    def ready_versions(self, model: str) -> list[int]:
        """The READY versions of ``model``, ascending."""
        routes = self._routes.get(model)
        return [] if routes is None else list(routes.handles)

    def handles(self) -> list[Handle]:
        """Every handle that serves now."""
        return [handle for routes in self._routes.values() for handle in routes.handles.values()]

    def failures(self) -> list[str]:
        """The names of what failed: models that could not be tried, and MODEL/VERSION for versions."""
        with self._lock:
            lives = [life for versions in self._lifecycles.values() for life in versions.values()]
            failed = [f"{life.model}/{life.version}" for life in lives if life.state is State.FAILED]
            return sorted([*self._broken, *failed])

    def mark_broken(self, model: str, reason: str) -> None:
        """Remember a model whose folder or configuration cannot be used."""
        with self._lock:
            self._broken[model] = reason

    def begin(self, model: str, version: int) -> Lifecycle:
        """A new life for a version, LOADING."""
        lifecycle = Lifecycle(model, version, observer=self._observer)
        with self._lock:
            self._lifecycles.setdefault(model, {})[version] = lifecycle
        return lifecycle

    def publish(self, handle: Handle, lifecycle: Lifecycle) -> None:
        """Route requests to ``handle``, then announce READY: whoever sees READY can already be served."""
        with self._lock:
            routes = self._routes.get(handle.name)
            self._route(handle.name, {**(routes.handles if routes else {}), handle.version: handle})
        lifecycle.move_to(State.READY)

    def retire(self, handle: Handle) -> Lifecycle:
        """Announce DRAINING, then stop routing to ``handle``: nobody is told READY while requests are turned away."""
        with self._lock:
            lifecycle = self._lifecycles[handle.name][handle.version]
        lifecycle.move_to(State.DRAINING)
        with self._lock:
            left = dict(self._routes[handle.name].handles)
            del left[handle.version]
            self._route(handle.name, left)
        return lifecycle

    def _route(self, model: str, handles: Mapping[int, Handle]) -> None:
        """Replace the routes of ``model``. Call with ``_lock`` held."""
        routes = {name: route for name, route in self._routes.items() if name != model}
        if handles:
            routes[model] = _Routes(dict(sorted(handles.items())), handles[max(handles)])
        self._routes = routes

    def _explain_missing(self, model: str, version: str) -> ModelNotFound | ModelUnavailable:
        with self._lock:
            versions = self._lifecycles.get(model, {})
            broken = self._broken.get(model)
            known = sorted(self._lifecycles.keys() | self._broken.keys())
        if not versions and broken is None:
            return ModelNotFound(f"Request for unknown model: '{model}' is not found; there are {known}")
        if version:
            number = _parse_version(version)
            if number not in versions:
                there = f"; there are {sorted(versions)}" if versions else f": {broken}"
                return ModelNotFound(f"Request for unknown model: '{model}' version {version} is not found{there}")
            state = _state(versions[number])
            return ModelUnavailable(
                f"Request for unknown model: '{model}' version {version} is not at ready state{state}"
            )
        reasons = broken or "; ".join(f"version {number}{_state(life)}" for number, life in sorted(versions.items()))
        return ModelNotFound(f"Request for unknown model: '{model}' has no available versions: {reasons}")


def _state(lifecycle: Lifecycle) -> str:
    return f" ({lifecycle.state.value}{': ' + lifecycle.reason if lifecycle.reason else ''})"


def _parse_version(text: str) -> int:
    """The number a client means; raises InvalidRequest."""
    # isascii: int() would take other scripts' digits, and a limit on length keeps its cost bounded.
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) < 1:
        raise InvalidRequest(
            f"failed to get model version from specified version string '{text}', "
            "version should be an integral value > 0"
        )
    return int(text)
