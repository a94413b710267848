"""Which model versions there are, in what state, and where requests for them go."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from preheat.errors import InvalidRequest, ModelNotFound, ModelUnavailable
from preheat.models.handle import Handle
from preheat.models.lifecycle import Lifecycle, State, nobody
from preheat.telemetry.events import Observer


@dataclass(frozen=True, slots=True)
class _Routes:
    """Handles by version, ascending, and the newest of them."""

    handles: Mapping[int, Handle]
    newest: Handle


@dataclass(frozen=True, slots=True)
class VersionState:
    """What is known of a model version. ``version`` None: the model could not be tried at all."""

    model: str
    version: int | None
    state: State
    reason: str


class Registry:
    """All model versions. Any thread may call it.

    ``_routes`` is replaced whole under ``_lock`` and read without it, so a lookup costs two dictionary reads and sees
    either all of a change or nothing. All else changes under ``_lock``.
    """

    def __init__(self, *, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._routes: Mapping[str, _Routes] = {}
        self._lifecycles: dict[str, dict[int, Lifecycle]] = {}
        self._broken: dict[str, str] = {}
        # Models that the server was started with, and that have not come up yet.
        self._awaited: set[str] = set()
        # What there is to say of models that serve, though something newer does not.
        self._notes: dict[str, str] = {}

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
        """Whether every model that :meth:`wait_for` was called with has come up, or is not wanted any more.

        What comes later, and fails, keeps nobody from what serves.
        """
        return not self._awaited

    def wait_for(self, models: Iterable[str]) -> None:
        """Be not ready until these models are."""
        with self._lock:
            self._awaited.update(models)

    def wait_no_more(self, model: str) -> None:
        """``model`` serves all that it should, or is not wanted."""
        with self._lock:
            self._awaited.discard(model)

    def handles_of(self, model: str) -> list[Handle]:
        """The handles that serve ``model`` now, by version."""
        return list(self._handles_of(model).values())

    def handles(self) -> list[Handle]:
        """Every handle that serves now."""
        return [handle for routes in self._routes.values() for handle in routes.handles.values()]

    def versions_of(self, model: str) -> set[int]:
        """The versions of ``model`` that were ever tried, and are not forgotten."""
        with self._lock:
            return set(self._lifecycles.get(model, ()))

    def knows(self, model: str) -> bool:
        """Whether ``model`` was ever tried."""
        with self._lock:
            return model in self._lifecycles or model in self._broken

    def forget_failures(self, model: str) -> None:
        """Forget why ``model`` failed, given up on purpose."""
        with self._lock:
            self._broken.pop(model, None)
            self._notes.pop(model, None)
            lives = self._lifecycles.get(model, {})
            for version in [number for number, life in lives.items() if life.state is State.FAILED]:
                del lives[version]
            if not lives:
                self._lifecycles.pop(model, None)

    def forget(self, model: str) -> None:
        """Know ``model`` no more, of which no version is routed to: its folder is gone."""
        with self._lock:
            for known in (self._broken, self._notes, self._lifecycles):
                known.pop(model, None)

    def forget_version(self, model: str, version: int) -> None:
        """Know a version no more, which is not routed to: its folder is gone."""
        with self._lock:
            self._lifecycles.get(model, {}).pop(version, None)

    def give_up(self, lifecycle: Lifecycle) -> None:
        """Know a life no more that was to be loaded, and is not wanted any more: nothing is announced of it."""
        with self._lock:
            lives = self._lifecycles.get(lifecycle.model, {})
            if lives.get(lifecycle.version) is lifecycle:
                del lives[lifecycle.version]
            if not lives:
                self._lifecycles.pop(lifecycle.model, None)

    def mark_broken(self, model: str, reason: str) -> None:
        """Remember a model whose folder or configuration cannot be used."""
        with self._lock:
            self._broken[model] = reason

    def note(self, model: str, text: str) -> None:
        """Say of a model that serves why something newer of it does not; empty: there is nothing to say."""
        with self._lock:
            self._notes[model] = text

    def begin(self, model: str, version: int) -> Lifecycle:
        """A new life for a version, LOADING. While its predecessor is served, others see that one."""
        with self._lock:
            self._broken.pop(model, None)
            if version in self._handles_of(model):
                return Lifecycle(model, version, observer=nobody)
            lifecycle = Lifecycle(model, version, observer=self._observer)
            earlier = self._lifecycles.get(model, {}).get(version)
            if earlier is not None:
                # It may still drain, and has nothing to say any more of a version that comes anew.
                earlier.announce_to(nobody)
            self._lifecycles.setdefault(model, {})[version] = lifecycle
            return lifecycle

    def publish(self, handle: Handle) -> Handle | None:
        """Route requests to ``handle``, then announce READY: whoever sees READY can already be served.

        The handle that served the version until now, for the caller to drain.
        """
        with self._lock:
            handles = self._handles_of(handle.name)
            self._route(handle.name, {**handles, handle.version: handle})
            if handle.version in handles:
                handles[handle.version].lifecycle.announce_to(nobody)
            handle.lifecycle.announce_to(self._observer)
            self._lifecycles.setdefault(handle.name, {})[handle.version] = handle.lifecycle
            # Within the lock, so that nobody can retire it between the two.
            handle.lifecycle.move_to(State.READY)
        return handles.get(handle.version)

    def retire(self, handle: Handle) -> None:
        """Announce DRAINING, then stop routing to ``handle``: nobody is told READY while requests are turned away."""
        handle.lifecycle.move_to(State.DRAINING)
        with self._lock:
            left = {version: other for version, other in self._handles_of(handle.name).items() if other is not handle}
            self._route(handle.name, left)

    def reason(self, model: str, version: int) -> str:
        """Why a version is in the state it is in; empty if there is nothing to say."""
        return next((row.reason for row in self.index() if (row.model, row.version) == (model, version)), "")

    def index(self) -> list[VersionState]:
        """Every model and version that was ever tried, sorted."""
        with self._lock:
            lives = [life for versions in self._lifecycles.values() for life in versions.values()]
            rows = [
                VersionState(life.model, life.version, life.state, life.reason or self._note_of(life)) for life in lives
            ]
            rows += [VersionState(model, None, State.FAILED, reason) for model, reason in self._broken.items()]
        return sorted(rows, key=lambda row: (row.model, row.version or 0))

    def _note_of(self, life: Lifecycle) -> str:
        return self._notes.get(life.model, "") if life.state is State.READY else ""

    def _handles_of(self, model: str) -> Mapping[int, Handle]:
        routes = self._routes.get(model)
        return routes.handles if routes else {}

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
