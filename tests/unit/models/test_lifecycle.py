"""The legal moves are the table's, each is announced, and every other move raises."""

from itertools import product

import pytest
from tests.unit.builders import Events

from preheat.models.lifecycle import Lifecycle, State
from preheat.telemetry.events import StateChanged

# How to get to each state.
WAY = {
    State.LOADING: [],
    State.READY: [State.READY],
    State.DRAINING: [State.READY, State.DRAINING],
    State.UNLOADED: [State.READY, State.DRAINING, State.UNLOADED],
    State.FAILED: [State.FAILED],
}
LEGAL = {
    (State.LOADING, State.READY),
    (State.READY, State.DRAINING),
    (State.DRAINING, State.UNLOADED),
    (State.LOADING, State.FAILED),
    (State.READY, State.FAILED),
    (State.DRAINING, State.FAILED),
}
MOVES = list(product(State, State))


def at(state: State) -> tuple[Lifecycle, Events]:
    events = Events()
    lifecycle = Lifecycle("m", 2, observer=events)
    for step in WAY[state]:
        lifecycle.move_to(step, "because")
    return lifecycle, events


@pytest.mark.parametrize(("state", "target"), [move for move in MOVES if move in LEGAL])
def test_a_legal_move_is_made_and_announced_with_its_reason(state: State, target: State) -> None:
    lifecycle, events = at(state)
    lifecycle.move_to(target, "as told")
    assert (lifecycle.state, lifecycle.reason) == (target, "as told")
    assert events.seen[-1] == StateChanged("m", 2, target.value, "as told")


@pytest.mark.parametrize(("state", "target"), [move for move in MOVES if move not in LEGAL])
def test_any_other_move_raises_and_changes_and_announces_nothing(state: State, target: State) -> None:
    lifecycle, events = at(state)
    before = list(events.seen)
    with pytest.raises(
        RuntimeError, match=rf"model 'm' version 2: illegal State\.{state.name} -> State\.{target.name}"
    ):
        lifecycle.move_to(target, "as told")
    assert (lifecycle.state, events.seen) == (state, before)


def test_a_life_begins_with_loading_and_says_so() -> None:
    lifecycle, events = at(State.LOADING)
    assert (lifecycle.state, lifecycle.reason) == (State.LOADING, "")
    assert events.seen == [StateChanged("m", 2, "LOADING", "")]


def test_a_life_shows_itself() -> None:
    lifecycle, _ = at(State.FAILED)
    assert repr(lifecycle) == "<Lifecycle m/2 FAILED 'because'>"
