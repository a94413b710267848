"""A Locust user that asks a model over gRPC, one request after another, and the test around it."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import gevent
import grpc
from grpc.experimental.gevent import init_gevent
from loadtests.answers import WrongAnswer, check_answer
from loadtests.description import describe_failure, describe_model
from loadtests.model import Model
from loadtests.options import LoadTestError, add_options, read_options, read_thresholds
from loadtests.payloads import Payload, make_payloads
from loadtests.thresholds import Outcome, broken
from locust import User, events, task
from locust.env import Environment
from locust.runners import STATE_INIT, WorkerRunner
from tritonclient.grpc import service_pb2

log = logging.getLogger(__name__)

# Importing locust has put gevent under the standard library. Without this, gRPC would not know, and the first call to
# wait would hold up every user.
init_gevent()

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A connection for each user, as so many clients would have: channels share one otherwise.
    ("grpc.use_local_subchannel_pool", 1),
)


class RequestFailed(Exception):
    """A call that did not end with the status OK."""


@dataclass(frozen=True, slots=True)
class Target:
    """What all users of this process ask. ``payloads`` has no end."""

    model: Model
    deadline_s: float
    payloads: Iterator[Payload]


class InferenceUser(User):
    """Asks as fast as it is answered. Locust makes and runs it, as a greenlet."""

    host = "127.0.0.1:8001"
    # Set as a test starts, before there is a user.
    target: ClassVar[Target]

    def on_start(self) -> None:
        """Connect."""
        self._channel = grpc.insecure_channel(_address(self.host), options=_OPTIONS)
        # Bytes in, a message out.
        self._infer: Callable[..., Any] = self._channel.unary_unary(
            _METHOD, response_deserializer=service_pb2.ModelInferResponse.FromString
        )

    def on_stop(self) -> None:
        """Disconnect."""
        self._channel.close()

    @task
    def infer(self) -> None:
        """Ask once, and report how it went."""
        payload = next(self.target.payloads)
        failure: Exception | None = None
        size = 0
        began_s = time.perf_counter()
        try:
            response = self._infer(payload.encoded, timeout=self.target.deadline_s)
        except grpc.RpcError as error:
            ended_s = time.perf_counter()
            failure = RequestFailed(describe_failure(error))
        else:
            ended_s = time.perf_counter()
            size = response.ByteSize()
            try:
                check_answer(response, self.target.model, request_id=payload.id, rows=payload.rows)
            except WrongAnswer as error:
                failure = error
        self.environment.events.request.fire(
            request_type="ModelInfer",
            name=self.target.model.name,
            response_time=(ended_s - began_s) * 1000,
            response_length=size,
            exception=failure,
            context={},
        )


def _address(host: str | None) -> str:
    """The address to connect to. Raises LoadTestError for a URL, which Locust's other users would want."""
    if not host or "://" in host:
        raise LoadTestError(f"--host: {host!r}: must be HOST:PORT, such as 127.0.0.1:8001, without a scheme")
    return host


def give_up(environment: Environment, reason: LoadTestError) -> NoReturn:
    """End the greenlet that starts a test, and with it the test; the process too, unless there is the page to go on in.

    Locust's own exceptions for this would show a stack trace for what is a slip in an option.
    """
    log.error("%s", reason)
    environment.process_exit_code = 1
    runner, options = environment.runner, environment.parsed_options
    if runner is not None:
        gevent.spawn(runner.quit if options is not None and options.headless else runner.stop)
    raise gevent.GreenletExit


def _set_clock(**_: Any) -> None:
    """Bring gevent's clock up to date: importing took seconds, which ``--run-time`` would be short of."""
    gevent.get_hub().loop.update_now()


def _prepare(environment: Environment, **_: Any) -> None:
    """Learn of the model and encode the requests, as a test starts, in each process of Locust's."""
    environment.process_exit_code = None
    try:
        options = read_options(environment.parsed_options)
        read_thresholds(environment.parsed_options)
        with grpc.insecure_channel(_address(environment.host or InferenceUser.host), options=_OPTIONS) as channel:
            model = describe_model(channel, options.model, options.model_version)
        payloads = make_payloads(model, options)
    except LoadTestError as error:
        give_up(environment, error)
    InferenceUser.target = Target(model, options.deadline_s, itertools.cycle(payloads))
    # Let users wait for their last answers: a call that is cut off would be neither a success nor a failure.
    environment.stop_timeout = max(environment.stop_timeout, options.deadline_s)
    log.info("%d different requests of %d bytes", len(payloads), len(payloads[0].encoded))


def _judge(environment: Environment, **_: Any) -> None:
    """Hold the test against its thresholds, as the process that has the statistics ends."""
    runner = environment.runner
    if runner is None or isinstance(runner, WorkerRunner) or environment.process_exit_code is not None:
        return
    if runner.state == STATE_INIT:
        # The page was left before any test.
        return
    total = environment.stats.total
    outcome = Outcome(
        requests=total.num_requests,
        failures=total.num_failures,
        duration_s=(total.last_request_timestamp or 0) - environment.stats.start_time,
        p99_ms=total.get_response_time_percentile(0.99) if total.num_requests else None,
    )
    lines = list(broken(read_thresholds(environment.parsed_options), outcome))
    for line in lines:
        log.error("threshold broken: %s", line)
    if lines:
        environment.process_exit_code = 1
    elif not runner.exceptions:
        # Locust's own verdict would be that any failure is one too many.
        environment.process_exit_code = 0


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(_set_clock)
events.test_start.add_listener(_prepare)
events.quitting.add_listener(_judge)
