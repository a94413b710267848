"""A load that rises in steps, with a line in the log for what came of each."""

import logging
import time
from typing import Any, cast

from loadtests.options import LoadTestError
from loadtests.steps import Steps, Totals, read_steps
from loadtests.user import InferenceUser, give_up
from locust import LoadTestShape, events
from locust.runners import Runner

__all__ = ["InferenceUser", "Ramp"]

# Locust calls this module by the name of the file alone.
log = logging.getLogger("loadtests.ramp")

# Locust has trouble with more new users a second.
_FASTEST_SPAWN = 100


class Ramp(LoadTestShape):
    """Locust asks for the load each second, on one greenlet; ``reset_time`` begins a test."""

    def reset_time(self) -> None:
        """Begin a test."""
        self._steps: Steps | None = None
        self._step = 0
        self._step_began = Totals()
        self._began_s = self._step_began_s = time.perf_counter()

    def tick(self) -> tuple[int, float] | None:
        """The users there should be now; None after the last step."""
        steps = self._steps = self._steps or self._read_steps()
        step = steps.at(time.perf_counter() - self._began_s)
        if step != self._step:
            self._report(steps.users[self._step])
            self._step = step or 0
        if step is None:
            return None
        return steps.users[step], min(steps.users[step], _FASTEST_SPAWN)

    @property
    def _running(self) -> Runner:
        # Set before the first tick.
        return cast("Runner", self.runner)

    def _read_steps(self) -> Steps:
        environment = self._running.environment
        arguments: Any = environment.parsed_options
        try:
            return read_steps(arguments.ramp, arguments.step_seconds)
        except LoadTestError as error:
            give_up(environment, error)

    def _report(self, users: int) -> None:
        """Log the step that is over, and begin to count the next."""
        total = self._running.stats.total
        now, now_s = Totals(total.num_requests, total.num_failures, dict(total.response_times)), time.perf_counter()
        step = now.since(self._step_began)
        log.info(
            "ramp: %d users: %.1f answered/s, p50 %s ms, p99 %s ms, %d failed",
            users, (step.requests - step.failures) / (now_s - self._step_began_s),
            step.percentile(0.5), step.percentile(0.99), step.failures,
        )  # fmt: skip
        self._step_began, self._step_began_s = now, now_s


def _add_options(parser: Any) -> None:
    parser.add_argument("--ramp", default="1,2,4,8,16,32", metavar="VALUE", help="the number of users of each step")
    parser.add_argument("--step-seconds", default="15", metavar="VALUE", help="how long each step lasts")


events.init_command_line_parser.add_listener(_add_options)
