"""The RPCs as functions of bytes: each answers what the protocol says, in the protocol's words."""

import logging
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.builders import (
    ECHO_CONFIG,
    PATIENCE_S,
    Gate,
    PlannedBackend,
    Recording,
    engine_over,
    loader_of,
    model_folder,
    rows_of,
)

from preheat.backend import Instance, Model, Outcome, Request, RequestSession, Response, Session
from preheat.engine import Engine, Phase
from preheat.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    RequestCancelled,
    ServerStopping,
    ServingError,
)
from preheat.models.registry import Registry
from preheat.protocol import grpc_service_pb2 as pb
from preheat.transport.methods import ControlMethods, infer

MessageT = TypeVar("MessageT", bound=Message)


class Served:
    """An engine over version 3 of ``m``, and what it responds."""

    def __init__(self, repository: Path, model: Model, *, config: str = ECHO_CONFIG) -> None:
        registry = Registry(observer=lambda _: None)
        folder = model_folder(repository, config=config, versions=(3,))
        loader = loader_of(PlannedBackend(lambda _: model))
        self.engine = engine_over(registry, loader, repository)
        self.handle = loader.load(folder, registry.begin("m", 3)).handle
        registry.publish(self.handle)
        self.control = ControlMethods(self.engine).table()
        self.responses: queue.SimpleQueue[bytes | ServingError] = queue.SimpleQueue()

    def call(self, name: str, request: Message, answer: MessageT) -> MessageT:
        answer.ParseFromString(self.control[name](request.SerializeToString()))
        return answer

    def infer(self, payload: bytes) -> bytes | ServingError:
        infer(self.engine, payload, deadline_s=None, respond=self.responses.put)
        response = self.responses.get(timeout=PATIENCE_S)
        assert self.responses.empty()
        return response

    def close(self) -> None:
        assert self.handle.drain(PATIENCE_S)
        assert self.handle.close(PATIENCE_S)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def served(tmp_path: Path, gate: Gate) -> Iterator[Served]:
    made = Served(tmp_path, Recording(do=gate))
    yield made
    gate.open()
    made.close()


def asking(value: float = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", id="seven")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.raw_input_contents.append(rows_of(value).tobytes())
    return message


def test_an_inference_is_answered_in_bytes(served: Served) -> None:
    response = served.infer(asking().SerializeToString())
    assert isinstance(response, bytes)
    message = pb.ModelInferResponse.FromString(response)
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "seven")
    assert np.frombuffer(message.raw_output_contents[0], np.float32).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"\xff\xff", InvalidRequest),
        (pb.ModelInferRequest(model_name="nope").SerializeToString(), ModelNotFound),
        (pb.ModelInferRequest(model_name="m").SerializeToString(), InvalidRequest),
    ],
)
def test_an_inference_that_cannot_be_is_answered_with_its_error(
    served: Served, payload: bytes, kind: type[ServingError]
) -> None:
    assert isinstance(served.infer(payload), kind)


@given(payload=st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_get_exactly_one_answer(served: Served, payload: bytes) -> None:
    assert isinstance(served.infer(payload), bytes | ServingError)


def test_a_ticket_calls_an_inference_off(served: Served, gate: Gate) -> None:
    ticket = infer(served.engine, asking(7).SerializeToString(), deadline_s=None, respond=served.responses.put)
    gate.await_entered()
    assert ticket is not None
    ticket.cancel()
    assert isinstance(served.responses.get(timeout=PATIENCE_S), RequestCancelled)


def test_an_inference_whose_deadline_has_passed_is_told_so(served: Served) -> None:
    infer(served.engine, asking().SerializeToString(), deadline_s=0.0, respond=served.responses.put)
    error = served.responses.get(timeout=PATIENCE_S)
    assert isinstance(error, DeadlineExceeded)


class Boasting(RequestSession):
    """Answers with a parameter that no message can carry."""

    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [Response({"y": each.inputs["x"]}, {"score": 2**80}) for each in requests]


class BoastingModel(Model):
    def open(self, instance: Instance) -> Session:  # noqa: ARG002 - the same everywhere
        return Boasting()


def test_an_answer_that_cannot_be_encoded_is_an_internal_error_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served(tmp_path, BoastingModel())
    with caplog.at_level(logging.ERROR):
        assert isinstance(served.infer(asking().SerializeToString()), InternalError)
    assert "an answer of model 'm' could not be encoded" in caplog.text
    served.close()


def test_liveness_readiness_and_metadata_are_the_engines(served: Served) -> None:
    assert served.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse()).live
    assert served.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse()).ready
    assert served.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse()).name == "cats"


@pytest.mark.parametrize(
    ("name", "version", "ready"), [("m", "", True), ("m", "3", True), ("m", "4", False), ("n", "", False)]
)
def test_model_ready_of_what_is_unknown_is_false_and_no_error(
    served: Served, name: str, version: str, ready: bool
) -> None:
    request = pb.ModelReadyRequest(name=name, version=version)
    assert served.call("ModelReady", request, pb.ModelReadyResponse()).ready == ready


def test_model_metadata_and_config_are_whole(served: Served) -> None:
    metadata = served.call("ModelMetadata", pb.ModelMetadataRequest(name="m"), pb.ModelMetadataResponse())
    assert (list(metadata.versions), metadata.platform) == (["3"], "planned")
    assert list(metadata.inputs[0].shape) == [-1, 2]
    config = served.call("ModelConfig", pb.ModelConfigRequest(name="m", version="3"), pb.ModelConfigResponse()).config
    assert (config.name, config.max_batch_size) == ("m", 8)


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig"])
def test_what_is_asked_of_an_unknown_model_raises(served: Served, name: str) -> None:
    # Both requests have the same fields.
    with pytest.raises(ModelNotFound):
        served.control[name](pb.ModelConfigRequest(name="nope").SerializeToString())


def test_a_stopping_server_says_so(served: Served) -> None:
    served.engine.enter(Phase.STOPPING)
    with pytest.raises(ServerStopping):
        served.control["ServerLive"](b"")
    assert not served.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse()).ready
    assert isinstance(served.infer(asking().SerializeToString()), ServerStopping)


@pytest.mark.parametrize(
    "name", ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"]
)
def test_a_message_that_is_none_is_refused_by_what_it_should_be(served: Served, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no valid inference.{name}Request"):
        served.control[name](b"\xff\xff")


def test_every_method_is_one_of_the_service(served: Served) -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert served.control.keys() <= {method.name for method in service.methods}


def test_what_cannot_be_decoded_is_not_kept_by_its_error() -> None:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
    given: list[bytes | ServingError] = []
    assert infer(cast("Engine", None), message.SerializeToString(), deadline_s=None, respond=given.append) is None
    (error,) = given
    assert isinstance(error, InvalidRequest)
    assert error.__traceback__ is None
