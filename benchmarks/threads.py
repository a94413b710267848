"""What threads that wait cost the others: Python's switch interval, and OpenMP's spinning.

    python -m benchmarks.threads

A small model (identity) by itself, and beside a large one (minilm, eager) that computes all the time; and the large one
by itself. Each setting is a server of its own; all run at the same time and are asked in turn.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.clients import perf_analyzer
from benchmarks.options import EXAMPLES, Options, require
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.rounds import Latencies, Run, Summary, interleave, measured
from benchmarks.samples import write_sample
from benchmarks.servers import PreheatServer, server_version

_SMALL, _LARGE = "identity", "minilm"
_SMALL_SHAPE = ["--shape", "INPUT0:16"]
# The large model is asked for as long as the small one is measured, and a little before and after.
_BESIDE_FACTOR = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is started: with which interval, None for Preheat's own, and which environment."""

    name: str
    switch_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


_SETTINGS = (
    Setting("as it is"),
    Setting("switches after 0.5 ms", switch_s=0.0005),
    Setting("switches after 20 ms", switch_s=0.02),
    Setting("OpenMP never spins", environment={"OMP_WAIT_POLICY": "passive"}),
    Setting("OpenMP spins 1,000 times", environment={"GOMP_SPINCOUNT": "1000"}),
    Setting("OpenMP spins 10,000 times", environment={"GOMP_SPINCOUNT": "10000"}),
)


class TunedServer(PreheatServer):
    """A server with a setting. ``__enter__`` changes this process's environment while it starts the other."""

    def __init__(self, repository: Path, setting: Setting, *, options: list[str]) -> None:
        super().__init__(repository, options=options)
        self._setting = setting
        if setting.switch_s is not None:
            # The same command, less the interpreter's "-m preheat serve".
            self._command = [sys.executable, "-c", _SWITCHING, str(setting.switch_s), "serve", *self._command[4:]]

    def __enter__(self) -> "TunedServer":
        before = dict(os.environ)
        os.environ.update(self._setting.environment)
        try:
            super().__enter__()
        finally:
            os.environ.clear()
            os.environ.update(before)
        return self


_SWITCHING = """\
import sys
sys.setswitchinterval(float(sys.argv.pop(1)))
from preheat.cli import main
main()
"""


def measure(options: Options) -> Section:
    """Measure each work with each setting."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, _servers(options, Path(folder)) as servers:
        sample = Path(folder) / "sample.json"
        write_sample(EXAMPLES / _LARGE, sample)
        for work, ask in _works(options, sample).items():
            runs: dict[str, Callable[[], Run]] = {
                name: partial(measured, server.pid, partial(ask, server.grpc_address))
                for name, server in servers.items()
            }
            found = interleave(work, runs, options.rounds)
            rows += [_row(work, name, found) for name in found]
        versions = [server_version(servers["as it is"].grpc_address)]
    return Section("Threads that wait", _ABOUT, rows, versions=versions)


@contextmanager
def _servers(options: Options, folder: Path) -> Iterator[dict[str, TunedServer]]:
    repository = folder / "repository"
    for model in (_SMALL, _LARGE):
        add_model(repository, EXAMPLES / model, model)
    with ExitStack() as stack:
        yield {
            setting.name: stack.enter_context(TunedServer(repository, setting, options=options.transport_options))
            for setting in _SETTINGS
        }


def _works(options: Options, sample: Path) -> dict[str, Callable[[str], Latencies]]:
    program = require(options.perf_analyzer, "--perf-analyzer")

    def small(address: str, *, concurrency: int, factor: int = 1) -> Latencies:
        window_s = options.window_s * factor
        return perf_analyzer(program, address, _SMALL, concurrency=concurrency, window_s=window_s, extra=_SMALL_SHAPE)

    def large(address: str, *, factor: int = 1) -> Latencies:
        extra = ["--input-data", str(sample)]
        return perf_analyzer(program, address, _LARGE, concurrency=1, window_s=options.window_s * factor, extra=extra)

    def small_beside_large(address: str) -> Latencies:
        with _meanwhile(lambda: large(address, factor=_BESIDE_FACTOR)):
            return small(address, concurrency=1)

    def large_beside_small(address: str) -> Latencies:
        with _meanwhile(lambda: small(address, concurrency=8, factor=_BESIDE_FACTOR)):
            return large(address)

    return {
        "identity, 8 at a time": partial(small, concurrency=8),
        "minilm, 1 at a time": large,
        "identity, 1 at a time, beside minilm": small_beside_large,
        "minilm, 1 at a time, beside identity": large_beside_small,
    }


@contextmanager
def _meanwhile(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _row(work: str, name: str, found: Mapping[str, Summary]) -> Row:
    times = round(found[name].times(found["as it is"]), 3)
    return {"work": work, "setting": name, **found[name].columns(), "times as it is": times}


_ABOUT = """\
Python hands its lock to a thread that wants it after an interval, 5 ms by itself; OpenMP's threads spin for a while
before they sleep, unless they are told not to."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
