"""The one door: every request is answered once, whatever state the server and the model are in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.builders import (
    PATIENCE_S,
    Gate,
    PlannedBackend,
    Recording,
    Replies,
    background,
    engine_over,
    loader_of,
    model_folder,
    request,
    rows_of,
    tensor,
)

import preheat
from preheat.engine import EXTENSIONS, Engine, Phase
from preheat.errors import (
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    RequestCancelled,
    ServerStopping,
    ServingError,
)
from preheat.messages import InferResponse
from preheat.models.registry import Registry

GOOD = request(tensor("x", rows_of(1)))


class Served:
    """An engine over versions 1 and 3 of model ``m``, and a version 4 that loads for ever."""

    def __init__(self, repository: Path) -> None:
        self.gate = Gate()
        self.registry = Registry(observer=lambda _: None)
        self.loader = loader_of(PlannedBackend(lambda _: Recording(do=self.gate)))
        self.engine = engine_over(self.registry, self.loader, name="cat server")
        self.folder = model_folder(repository, versions=(1, 3, 4, 5))
        for version in (1, 3):
            self.publish(version)
        self.registry.begin("m", 4)

    def publish(self, version: int) -> None:
        self.registry.publish(self.loader.load(self.folder, self.registry.begin("m", version)).handle)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    handles = set(made.registry.handles())
    yield made
    made.gate.open()
    for handle in handles | set(made.registry.handles()):
        assert handle.drain(PATIENCE_S)
        assert handle.close(PATIENCE_S)


def answer(engine: Engine, **changes: object) -> InferResponse | ServingError:
    replies = Replies()
    engine.submit(GOOD._replace(**changes), replies)  # type: ignore[arg-type]
    return replies.wait()


@pytest.mark.parametrize(("version", "expected"), [("", "3"), ("3", "3"), ("1", "1")])
def test_a_request_is_answered_by_its_version_or_the_newest_and_told_which(
    served: Served, version: str, expected: str
) -> None:
    response = answer(served.engine, version=version)
    assert isinstance(response, InferResponse)
    assert (response.model, response.version) == ("m", expected)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "nope"}, ModelNotFound),
        ({"version": "9"}, ModelNotFound),
        ({"version": "4"}, ModelUnavailable),
        ({"version": "x"}, InvalidRequest),
        ({"inputs": ()}, InvalidRequest),
        ({"parameters": {"triton_enable_empty_final_response": 1}}, InvalidRequest),
    ],
)
def test_what_cannot_be_served_is_answered_at_once_with_why(
    served: Served, changes: dict[str, object], error: type[ServingError]
) -> None:
    replies = Replies()
    assert served.engine.submit(GOOD._replace(**changes), replies) is None  # type: ignore[arg-type]
    assert isinstance(replies.wait(), error)


def test_a_reserved_parameter_is_named_and_others_are_taken(served: Served) -> None:
    refused = answer(served.engine, parameters={"triton_x": 1})
    assert str(refused) == "request parameter 'triton_x': keys that begin with 'triton_' are reserved"
    assert isinstance(answer(served.engine, parameters={"priority": 1}), InferResponse)


def test_a_ticket_calls_its_request_off(served: Served) -> None:
    replies = Replies()
    ticket = served.engine.submit(request(tensor("x", rows_of(7))), replies)
    served.gate.await_entered()
    assert ticket is not None
    ticket.cancel()
    assert isinstance(replies.wait(), RequestCancelled)


def test_a_request_that_meets_a_draining_version_goes_to_its_successor(served: Served) -> None:
    # Version 3 is routed to, but takes nothing any more: an instant of every unloading.
    assert served.registry.find("m", "").drain(PATIENCE_S)
    asking = background(answer, served.engine)
    served.publish(5)
    response = asking.result(PATIENCE_S)
    assert isinstance(response, InferResponse)
    assert response.version == "5"


def test_a_lame_duck_is_not_ready_but_answers(served: Served) -> None:
    served.engine.enter(Phase.LAME_DUCK)
    assert not served.engine.ready()
    assert served.engine.live()
    assert served.engine.model_ready("m", "")
    assert isinstance(answer(served.engine), InferResponse)


def test_a_stopping_server_refuses_everything_but_readiness(served: Served) -> None:
    served.engine.enter(Phase.STOPPING)
    assert isinstance(answer(served.engine), ServerStopping)
    assert not served.engine.ready()
    assert not served.engine.model_ready("m", "")
    for call in (
        served.engine.live,
        served.engine.server_metadata,
        lambda: served.engine.model_metadata("m", ""),
        lambda: served.engine.model_config("m", ""),
    ):
        with pytest.raises(ServerStopping):
            call()


def test_the_server_is_ready_when_every_model_is() -> None:
    registry = Registry(observer=lambda _: None)
    engine = engine_over(registry, loader_of(PlannedBackend(lambda _: Recording())))
    assert engine.ready()
    registry.wait_for(["m"])
    assert not engine.ready()
    assert engine.live()


def test_whether_a_model_is_ready_is_no_error_for_what_is_unknown_but_for_a_bad_version(served: Served) -> None:
    asked = [("m", ""), ("m", "1"), ("m", "4"), ("m", "9"), ("nope", "")]
    assert [served.engine.model_ready(*each) for each in asked] == [True, True, False, False, False]
    with pytest.raises(InvalidRequest):
        served.engine.model_ready("m", "x")


def test_the_server_says_its_name_its_version_and_what_it_has(served: Served) -> None:
    metadata = served.engine.server_metadata()
    assert (metadata.name, metadata.version, metadata.extensions) == ("cat server", preheat.__version__, EXTENSIONS)


def test_a_models_metadata_lists_its_ready_versions_or_the_one_asked_for(served: Served) -> None:
    assert served.engine.model_metadata("m", "").versions == ("1", "3")
    assert served.engine.model_metadata("m", "1").versions == ("1",)
    with pytest.raises(ModelUnavailable):
        served.engine.model_metadata("m", "4")
    with pytest.raises(ModelNotFound):
        served.engine.model_metadata("nope", "")


def test_a_models_configuration_is_the_completed_one(served: Served) -> None:
    config = served.engine.model_config("m", "1")
    assert (config.name, config.max_batch_size, config.instance_group[0].count) == ("m", 8, 1)
