"""Where a small request's time goes: microseconds of each stage of the server, on both transports.

    python -m benchmarks.stages --perf-analyzer PROGRAM

A server whose stages are timed from outside (benchmarks.timed_server) is asked for tensors of 64 bytes. What is left of
the time from question to answer, as the client sees it, is the transport outside Python, the wire and the client.
"""

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.clients import perf_analyzer
from benchmarks.options import EXAMPLES, Options, require
from benchmarks.plots import Bars
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.servers import PreheatServer, installed_transports, server_version
from tests.e2e.server_process import ServerProcess

_CONCURRENCY = (1, 8)
_OUTSIDE = "not timed: HTTP/2, wire and client"


class TimedServer(PreheatServer):
    """A server that leaves its stages' seconds in ``figures``."""

    def __init__(self, repository: Path, figures: Path, *, transport: str) -> None:
        super().__init__(repository, options=["--transport", transport])
        # The same command, less the interpreter's "-m preheat serve".
        self._command = [sys.executable, "-m", "benchmarks.timed_server", str(figures), *self._command[4:]]


def measure(options: Options) -> Section:
    """Time each transport at each concurrency, in a server of its own."""
    program = require(options.perf_analyzer, "--perf-analyzer")
    groups: dict[str, Mapping[str, float]] = {}
    rows: list[Row] = []
    versions: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        add_model(repository, EXAMPLES / "identity", "identity")
        for transport in installed_transports():
            for concurrency in _CONCURRENCY:
                figures = Path(folder) / "figures.json"
                with TimedServer(repository, figures, transport=transport) as server:
                    p50_us = _ask(program, server, concurrency, options)
                    versions = [server_version(server.grpc_address)]
                    assert server.terminate() == 0
                stages = _microseconds(json.loads(figures.read_text()))
                if concurrency == 1:
                    stages[_OUTSIDE] = p50_us - sum(stages.values())
                groups[f"{transport}, {concurrency}"] = stages
                rows += [_row(transport, concurrency, stage, value) for stage, value in stages.items()]
    plots = [Bars("stages", "A request of 64 bytes, by stage", "microseconds a request", groups)]
    return Section("Where a small request's time goes", _ABOUT, rows, plots=plots, versions=versions)


def _ask(program: str, server: ServerProcess, concurrency: int, options: Options) -> float:
    """Ask for a while, the first part of it unseen; the median latency in microseconds."""
    extra = ["--shape", "INPUT0:16"]
    for _ in range(2):
        server.send_signal(signal.SIGUSR1)
        latencies = perf_analyzer(
            program, server.grpc_address, "identity", concurrency=concurrency, window_s=options.window_s,
            extra=extra,
        )  # fmt: skip
    return latencies.p50_ms * 1e3


def _microseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    requests = seconds["requests"]
    own = {stage: value / requests * 1e6 for stage, value in seconds.items() if stage != "requests"}
    return dict(sorted(own.items(), key=lambda item: -item[1]))


def _row(transport: str, concurrency: int, stage: str, microseconds: float) -> Row:
    return {
        "transport": transport,
        "at a time": concurrency,
        "stage": stage,
        "microseconds a request": round(microseconds, 1),
    }


_ABOUT = """\
Each stage's own time, without that of stages within it; timing itself costs about a microsecond a stage. One process,
one connection for each request at a time. Outside Python is what the median latency leaves."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
