"""The states of a model version and the legal moves between them."""

import enum
import threading

from preheat.telemetry.events import Event, Observer, StateChanged


class State(enum.Enum):
    """Where a model version is in its life. LOADING includes warm-up: READY means hot."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


# A reload is a new version handle with a life of its own, so nothing leads back.
_NEXT: dict[State, frozenset[State]] = {
    State.LOADING: frozenset({State.READY, State.FAILED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADED, State.FAILED}),
    State.UNLOADED: frozenset(),
    State.FAILED: frozenset(),
}


def nobody(_: Event) -> None:
    """An observer that observes nothing."""


class Lifecycle:
    """The state of one model version. Any thread may read it; moves are serialized by ``_lock``."""

    def __init__(self, model: str, version: int, *, observer: Observer) -> None:
        self.model = model
        self.version = version
        self._observer = observer
        self._lock = threading.Lock()
        self._state = State.LOADING
        self._reason = ""
        observer(StateChanged(model, version, State.LOADING.value, ""))

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is in this state, where there is something to say."""
        return self._reason

    def move_to(self, state: State, reason: str = "") -> None:
        """Move to ``state`` and announce it; raises RuntimeError if the table has no such move."""
        with self._lock:
            if state not in _NEXT[self._state]:
                raise RuntimeError(f"model '{self.model}' version {self.version}: illegal {self._state} -> {state}")
            self._state, self._reason = state, reason
        self._observer(StateChanged(self.model, self.version, state.value, reason))

    def announce_to(self, observer: Observer) -> None:
        """Announce further moves to ``observer``: of the lives that a version has, one at a time speaks for it."""
        self._observer = observer

    def __repr__(self) -> str:
        return f"<Lifecycle {self.model}/{self.version} {self._state.value} {self._reason!r}>"
