"""The rule by which batches form, held to its words: examples for each number of it, and what must always be so."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.builders import pending

from preheat.scheduling.batching import BatchLimits, Choice, choose
from preheat.scheduling.pending import LoneKey, Pending
from preheat.scheduling.queue_policy import Standing

NOW_S = 100.0
ALONE = BatchLimits(max_rows=8)
GREEDY = BatchLimits(max_rows=8, joins=True)
PATIENT = BatchLimits(max_rows=8, joins=True, max_delay_s=5.0)
PREFERRING = BatchLimits(max_rows=8, joins=True, preferred_rows=(2, 4), max_delay_s=5.0)

times = st.floats(NOW_S - 10, NOW_S)
# Mostly few, so that requests fit together.
rows_of_one = st.integers(1, 3) | st.integers(1, 10)


@st.composite
def queues(draw: st.DrawFn) -> list[Pending]:
    """Waiting requests, in order of arrival."""
    arrivals = sorted(draw(st.lists(times, max_size=12)))
    return [
        pending(
            rows=draw(rows_of_one),
            key=draw(st.sampled_from("aab")),
            arrived_s=arrived_s,
            expires_s=draw(st.none() | st.none() | st.floats(NOW_S - 3, NOW_S + 3)),
        )
        for arrived_s in arrivals
    ]


@st.composite
def any_limits(draw: st.DrawFn) -> BatchLimits:
    max_rows = draw(st.integers(1, 12))
    preferred = draw(st.sets(st.integers(1, max_rows), max_size=3))
    delay_s = draw(st.just(0.0) | st.floats(0.001, 10))
    return BatchLimits(max_rows, draw(st.sampled_from([True, True, True, False])), tuple(sorted(preferred)), delay_s)


def rows_in(batch: list[Pending]) -> int:
    return sum(each.rows for each in batch)


def waiting_rows(*rows: int, arrived_s: float = NOW_S) -> list[Pending]:
    return [pending(rows=each, arrived_s=arrived_s) for each in rows]


def run(waiting: list[Pending], limits: BatchLimits) -> Choice:
    return choose([waiting], NOW_S, limits)


@given(queues(), any_limits())
def test_a_request_is_chosen_at_most_once_and_only_if_it_waits(waiting: list[Pending], limits: BatchLimits) -> None:
    choice = run(waiting, limits)
    gone = [*choice.batch, *choice.expired]
    assert len(set(gone)) == len(gone)
    assert set(gone) <= set(waiting)


@given(queues(), any_limits())
def test_what_has_expired_never_runs_and_what_is_refused_has_expired(
    waiting: list[Pending], limits: BatchLimits
) -> None:
    choice = run(waiting, limits)
    assert all(each.standing.expires_s is None or each.standing.expires_s > NOW_S for each in choice.batch)
    assert all(each.standing.expires_s is not None and each.standing.expires_s <= NOW_S for each in choice.expired)


@given(queues(), any_limits())
def test_a_batch_is_the_oldest_requests_of_one_key_in_their_order(waiting: list[Pending], limits: BatchLimits) -> None:
    choice = run(waiting, limits)
    alive = [each for each in waiting if each.standing.expires_s is None or each.standing.expires_s > NOW_S]
    of_the_oldest = [each for each in alive if each.batch_key == alive[0].batch_key]
    assert choice.batch == of_the_oldest[: len(choice.batch)]


@given(queues(), any_limits())
def test_only_a_lone_request_may_exceed_the_largest_batch(waiting: list[Pending], limits: BatchLimits) -> None:
    batch = run(waiting, limits).batch
    assert len(batch) <= 1 or rows_in(batch) <= limits.max_rows
    assert limits.joins or len(batch) <= 1


@given(queues(), any_limits())
@example([pending(arrived_s=NOW_S)], PATIENT)
def test_what_waits_without_a_batch_is_looked_at_again_when_it_ripens_or_expires(
    waiting: list[Pending], limits: BatchLimits
) -> None:
    choice = run(waiting, limits)
    left = [each for each in waiting if each not in choice.expired]
    if choice.batch or not left:
        assert choice.look_again_s is None
        return
    assert choice.look_again_s is not None
    assert choice.look_again_s > NOW_S
    assert choice.look_again_s <= left[0].arrived_s + limits.max_delay_s
    own = [each.standing.expires_s for each in left if each.batch_key == left[0].batch_key]
    assert all(choice.look_again_s <= expires_s for expires_s in own if expires_s is not None)


@given(queues(), any_limits())
def test_without_a_delay_something_runs_whenever_something_alive_waits(
    waiting: list[Pending], limits: BatchLimits
) -> None:
    eager = BatchLimits(limits.max_rows, limits.joins, limits.preferred_rows)
    choice = run(waiting, eager)
    assert choice.batch or len(choice.expired) == len(waiting)


@given(queues(), any_limits())
def test_when_its_time_has_come_a_waiting_batch_runs_or_sheds_what_expired(
    waiting: list[Pending], limits: BatchLimits
) -> None:
    again_s = run(waiting, limits).look_again_s
    if again_s is not None:
        later = choose([waiting], again_s, limits)
        assert later.batch or later.expired


@given(st.lists(rows_of_one, min_size=1, max_size=9), times, any_limits())
@example([4, 4], NOW_S, PATIENT)
def test_a_batch_that_could_still_grow_runs_only_when_ripe_or_at_the_largest_preferred_size(
    rows: list[int], arrived_s: float, limits: BatchLimits
) -> None:
    batch = run(waiting_rows(*rows, arrived_s=arrived_s), limits).batch
    sums = [sum(rows[:count]) for count in range(1, len(rows) + 1)]
    closed = not limits.joins or sums[-1] >= limits.max_rows
    ripe = arrived_s + limits.max_delay_s <= NOW_S
    preferred = bool(limits.preferred_rows) and limits.preferred_rows[-1] in sums
    assert bool(batch) == (closed or ripe or preferred)


patience = st.none() | st.floats(NOW_S - 3, NOW_S + 3)


@st.composite
def standing_queues(draw: st.DrawFn) -> list[list[Pending]]:
    """Levels of waiting requests, some of which have to let others go first."""
    return [
        [
            pending(arrived_s=arrived_s, standing=Standing(level, yields_s=draw(patience)))
            for arrived_s in sorted(draw(st.lists(times, max_size=5)))
        ]
        for level in range(draw(st.integers(1, 3)))
    ]


@given(standing_queues())
def test_requests_are_served_by_level_then_those_with_patience_then_by_arrival(levels: list[list[Pending]]) -> None:
    def place(each: Pending) -> tuple[int, bool, float]:
        yields_s = each.standing.yields_s
        return each.standing.level, yields_s is not None and yields_s <= NOW_S, each.arrived_s

    served: list[Pending] = []
    while batch := choose(levels, NOW_S, ALONE).batch:
        served += batch
        for level in levels:
            level[:] = [each for each in level if each not in batch]
    assert served == sorted(served, key=place)
    assert not any(levels)


def test_a_batch_is_filled_up_from_lower_levels() -> None:
    high, low = waiting_rows(1, 1), waiting_rows(2)
    assert choose([high, low], NOW_S, GREEDY).batch == [*high, *low]


def test_a_batch_of_two_levels_is_ripe_when_its_oldest_has_waited_long_enough() -> None:
    high, low = waiting_rows(1), waiting_rows(1, arrived_s=NOW_S - 5)
    assert choose([high, low], NOW_S, PATIENT).batch == [*high, *low]


def test_nothing_is_chosen_of_nothing() -> None:
    assert run([], PATIENT) == Choice()


def test_where_requests_do_not_join_the_oldest_runs_alone_at_once() -> None:
    waiting = waiting_rows(1, 1)
    assert run(waiting, ALONE) == Choice(waiting[:1])


def test_rule_1_the_oldest_decides_and_others_of_its_key_join_it() -> None:
    first, other, second = pending(key="a"), pending(key="b"), pending(key="a")
    assert run([first, other, second], GREEDY).batch == [first, second]


def test_rule_1_the_first_that_does_not_fit_ends_the_batch_even_if_a_later_one_would() -> None:
    waiting = waiting_rows(5, 4, 3)
    assert run(waiting, GREEDY).batch == waiting[:1]


@pytest.mark.parametrize("rows", [(4, 4), (4, 4, 1), (1, 7)])
def test_rule_2_a_full_batch_runs_before_its_delay_is_over(rows: tuple[int, ...]) -> None:
    waiting = waiting_rows(*rows)
    assert run(waiting, PATIENT).batch == waiting[:2]


def test_rule_2_a_batch_that_the_next_of_its_key_would_overfill_runs_before_its_delay_is_over() -> None:
    waiting = waiting_rows(4, 3, 2)
    assert run(waiting, PATIENT).batch == waiting[:2]


def test_rule_2_a_request_of_another_key_does_not_close_the_batch() -> None:
    waiting = [*waiting_rows(7), pending(rows=8, key="b", arrived_s=NOW_S)]
    assert run(waiting, PATIENT).batch == []


def test_a_request_larger_than_the_largest_batch_runs_alone() -> None:
    waiting = waiting_rows(9, 1)
    assert run(waiting, PATIENT).batch == waiting[:1]


def test_rule_3_the_largest_preferred_size_runs_at_once_and_leaves_the_rest() -> None:
    waiting = waiting_rows(1, 1, 2, 1)
    assert run(waiting, PREFERRING).batch == waiting[:3]


def test_rule_3_a_smaller_preferred_size_waits_for_the_largest() -> None:
    assert run(waiting_rows(1, 1), PREFERRING) == Choice(look_again_s=NOW_S + 5.0)


def test_rule_3_a_preferred_size_that_whole_requests_step_over_does_not_run_early() -> None:
    assert run(waiting_rows(3, 3), PREFERRING).batch == []


def test_rule_4_a_batch_waits_from_the_arrival_of_its_oldest() -> None:
    waiting = [*waiting_rows(1, arrived_s=NOW_S - 2), *waiting_rows(1)]
    assert run(waiting, PATIENT) == Choice(look_again_s=NOW_S + 3)


def test_rule_4_a_batch_runs_as_it_is_once_its_oldest_has_waited_long_enough() -> None:
    waiting = [*waiting_rows(1, arrived_s=NOW_S - 5), *waiting_rows(2)]
    assert run(waiting, PATIENT).batch == waiting


def test_rule_4_prefers_the_largest_preferred_size_it_can_fill() -> None:
    waiting = waiting_rows(1, 1, 1, arrived_s=NOW_S - 5)
    assert run(waiting, PREFERRING).batch == waiting[:2]


def test_rule_4_runs_everything_when_no_preferred_size_can_be_filled() -> None:
    waiting = waiting_rows(3, arrived_s=NOW_S - 5)
    assert run(waiting, PREFERRING).batch == waiting


def test_a_waiting_batch_is_looked_at_when_the_first_of_its_deadlines_passes() -> None:
    waiting = [pending(arrived_s=NOW_S, expires_s=NOW_S + 2), pending(arrived_s=NOW_S, expires_s=NOW_S + 1)]
    assert run(waiting, PATIENT) == Choice(look_again_s=NOW_S + 1)


@pytest.mark.parametrize("limits", [ALONE, GREEDY, PATIENT, PREFERRING])
def test_an_expired_request_is_refused_and_does_not_hold_up_the_next(limits: BatchLimits) -> None:
    expired, alive = pending(rows=8, expires_s=NOW_S), pending(expires_s=math.inf)
    assert run([expired, alive], limits) == Choice([alive], [expired])


def test_a_batch_is_full_at_the_rows_beyond_which_it_is_slower_for_its_key() -> None:
    limits = replace(PATIENT, worthwhile={pending(key="a").batch_key: 3})
    waiting = [pending(rows=1, key="a", arrived_s=NOW_S) for _ in range(5)]
    assert run(waiting, limits).batch == waiting[:3]
    assert run(waiting[:2], limits).batch == []
    others = [pending(rows=1, key="b", arrived_s=NOW_S) for _ in range(8)]
    assert run(others, limits).batch == others


def test_a_request_of_more_rows_than_are_joined_runs_alone() -> None:
    limits = replace(PATIENT, worthwhile={pending(key="a").batch_key: 3})
    large, small = pending(rows=5, key="a", arrived_s=NOW_S), pending(rows=1, key="a", arrived_s=NOW_S)
    assert run([large, small], limits).batch == [large]


@pytest.mark.parametrize("limits", [PATIENT, PREFERRING])
def test_one_that_shares_its_batch_with_none_holds_nobody_up(limits: BatchLimits) -> None:
    lone, *others = waiting_rows(1, 1, 1)
    lone.batch_key = LoneKey(lone.batch_key)
    assert run([lone, *others], limits).batch == [lone]
