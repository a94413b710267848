"""Where a request stands in its model's queue, by what it asks for and what its model allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preheat.errors import InvalidRequest
from preheat.messages import Parameter
from preheat.scheduling.queue_policy import QueuePolicies, QueuePolicy, Standing

ARRIVED_S = 100.0
THREE_LEVELS = QueuePolicies((QueuePolicy(), QueuePolicy(), QueuePolicy()), default_level=1)


def stand(policy: QueuePolicy, parameters: dict[str, Parameter], deadline_s: float | None = None) -> Standing:
    return QueuePolicies((policy,)).stand(parameters, arrived_s=ARRIVED_S, deadline_s=deadline_s)


@pytest.mark.parametrize(("priority", "level"), [(1, 0), (2, 1), (3, 2), (0, 1), (4, 1), (2**64 - 1, 1)])
def test_1_is_the_highest_priority_and_what_is_no_level_is_the_default(priority: int, level: int) -> None:
    assert THREE_LEVELS.stand({"priority": priority}, arrived_s=ARRIVED_S).level == level


def test_a_request_that_names_no_priority_has_the_default() -> None:
    assert THREE_LEVELS.stand({}, arrived_s=ARRIVED_S).level == 1


def test_without_levels_a_priority_has_no_effect() -> None:
    assert stand(QueuePolicy(), {"priority": 7}) == Standing()


@pytest.mark.parametrize("key", ["priority", "timeout"])
@pytest.mark.parametrize("value", [-1, True, "1", 1.0])
def test_what_is_no_count_is_refused_by_name(key: str, value: Parameter) -> None:
    with pytest.raises(InvalidRequest, match=f"'{key}': .*whole number"):
        stand(QueuePolicy(), {key: value})


@pytest.mark.parametrize(
    ("policy", "patience_s"),
    [
        (QueuePolicy(), None),
        (QueuePolicy(timeout_s=3), 3),
        (QueuePolicy(allows_override=True), 2),
        (QueuePolicy(timeout_s=3, allows_override=True), 2),
        (QueuePolicy(timeout_s=1, allows_override=True), 1),
    ],
)
def test_a_request_may_ask_for_less_time_where_that_is_allowed(policy: QueuePolicy, patience_s: float | None) -> None:
    expires_s = stand(policy, {"timeout": 2_000_000}).expires_s
    assert expires_s == (None if patience_s is None else ARRIVED_S + patience_s)


def test_a_timeout_of_0_asks_for_nothing() -> None:
    assert stand(QueuePolicy(allows_override=True), {"timeout": 0}).expires_s is None


@given(st.floats(0.1, 10), st.none() | st.floats(ARRIVED_S, ARRIVED_S + 20))
def test_the_call_deadline_and_the_timeout_both_end_a_request(timeout_s: float, deadline_s: float | None) -> None:
    standing = stand(QueuePolicy(timeout_s=timeout_s), {}, deadline_s)
    ends = [ARRIVED_S + timeout_s, *([] if deadline_s is None else [deadline_s])]
    assert standing == Standing(expires_s=min(ends))


def test_where_a_timeout_delays_only_the_deadline_ends_a_request() -> None:
    standing = stand(QueuePolicy(timeout_s=2, delays=True), {}, ARRIVED_S + 9)
    assert standing == Standing(expires_s=ARRIVED_S + 9, yields_s=ARRIVED_S + 2)
