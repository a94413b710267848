"""Requests take their turn by priority, and wait no longer than their model's policy lets them."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.gated_model import FAILURE, PENDING, Gated, gated_model, of_model, serving_gated
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.protocol

CONFIGS = {
    "ranked": "dynamic_batching { priority_levels: 3 default_priority_level: 2 }",
    "filled_up": "dynamic_batching { priority_levels: 2 default_priority_level: 2 }",
    "bounded": """dynamic_batching {
        priority_levels: 2 default_priority_level: 2
        priority_queue_policy { key: 1 value { max_queue_size: 1 } }
    }""",
    "impatient": """dynamic_batching {
        priority_levels: 2 default_priority_level: 1
        priority_queue_policy { key: 2 value { default_timeout_microseconds: 1 } }
    }""",
    "overridden": "dynamic_batching { default_queue_policy { allow_timeout_override: true } }",
    "fixed": "dynamic_batching { }",
    "yielding": """dynamic_batching {
        default_queue_policy { timeout_action: DELAY allow_timeout_override: true }
    }""",
}


@pytest.fixture(scope="module")
def gatekeeper() -> Iterator[Gatekeeper]:
    with Gatekeeper() as gatekeeper:
        yield gatekeeper


@pytest.fixture(scope="module")
def server(gatekeeper: Gatekeeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving_gated(tmp_path_factory.mktemp("queueing"), gatekeeper, CONFIGS) as server:
        yield server


@pytest.fixture
def gated(request: pytest.FixtureRequest, server: ServerProcess, gatekeeper: Gatekeeper) -> Iterator[Gated]:
    """The model that the test asks for, with a request of 8 rows at its gate: what comes now has to queue."""
    with gated_model(request.param, server, gatekeeper) as gated:
        gated.ask(8)
        assert gated.next().rows == 8
        yield gated


def queue_up(gated: Gated, *requests: tuple[int, dict[str, Any]]) -> None:
    """Send requests, of so many rows and with these options, so that they wait in this order."""
    for already, (rows, options) in enumerate(requests):
        gated.ask_in_queue(rows, already=already, **options)


def served(gated: Gated, count: int) -> list[int]:
    """Let what waits be executed, one batch after the other; the rows of each."""
    rows = []
    for _ in range(count):
        gated.let_go()
        rows.append(gated.next().rows)
    gated.gatekeeper.open()
    return rows


@of_model("ranked")
def test_requests_are_served_by_priority_and_those_without_one_have_the_default(gated: Gated) -> None:
    options: list[dict[str, Any]] = [{"priority": 3}, {}, {"priority": 1}, {"priority": 9}]
    queue_up(gated, *zip([5, 6, 7, 8], options, strict=True))
    assert served(gated, 4) == [7, 6, 8, 5]
    assert gated.answers(5) == []


@of_model("filled_up")
def test_a_batch_of_high_priority_is_filled_up_from_below(gated: Gated) -> None:
    queue_up(gated, (2, {}), (7, {}), (3, {"priority": 1}))
    assert served(gated, 2) == [5, 7]
    assert gated.answers(4) == []


@of_model("bounded")
def test_each_priority_has_a_queue_of_its_own(gated: Gated) -> None:
    queue_up(gated, (1, {"priority": 1}), (1, {}), (1, {}))
    gated.ask(1, priority=1)
    (error,) = gated.answers(1)
    assert error.status() == "StatusCode.UNAVAILABLE"
    assert "Exceeds maximum queue size: 1 requests wait at priority 1" in error.message()
    gated.gatekeeper.open()
    assert gated.answers(4) == []


@of_model("impatient")
def test_a_request_that_waited_for_too_long_is_refused_and_never_runs(gated: Gated) -> None:
    queue_up(gated, (1, {"priority": 2}))
    gated.gatekeeper.open()
    assert_one_expired(gated)


@of_model("overridden")
def test_a_request_may_bring_its_own_timeout_where_that_is_allowed(gated: Gated) -> None:
    queue_up(gated, (1, {"timeout": 1}))
    gated.gatekeeper.open()
    assert_one_expired(gated)


@of_model("fixed")
def test_a_timeout_that_the_model_does_not_allow_has_no_effect(gated: Gated) -> None:
    queue_up(gated, (1, {"timeout": 1}))
    gated.gatekeeper.open()
    assert gated.answers(2) == []


@of_model("yielding")
def test_a_request_that_waited_for_too_long_may_have_to_let_others_go_first(gated: Gated) -> None:
    queue_up(gated, (5, {"timeout": 1}), (6, {}), (7, {}))
    assert served(gated, 3) == [6, 7, 5]
    assert gated.answers(4) == []


def assert_one_expired(gated: Gated) -> None:
    errors = gated.answers(2)
    assert [(error.status(), error.message()) for error in errors] == [
        ("StatusCode.UNAVAILABLE", "Request timeout expired")
    ]
    gated.scrape_until(FAILURE, 1, reason="REJECTED")
    assert gated.total(PENDING) == 0
