"""What is left of a model's speed once it is served: rows a second served, over those of its session run in a loop.

    python -m benchmarks.raw --models model_repo/minilm_onnx model_repo/efficientnet_compiled

The session is loaded into another process as the server loads it, with as many threads, and runs on its own warm thread
at the mean batch size that the server formed in the same round. One sample is sent again and again, so that rows can
share batches.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from benchmarks.clients import perf_analyzer
from benchmarks.options import Options, require
from benchmarks.plots import Bars
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.rounds import Latencies, Run, Summary, interleave, measured
from benchmarks.samples import read_sample, write_sample
from benchmarks.servers import PreheatServer, server_version
from tests.e2e.server_process import server_environment

_CONCURRENCY = (1, 8)
_ROOT = Path(__file__).parents[1]


class RawProcess:
    """A model in a process of its own, from ``__enter__`` to ``__exit__``; ``row`` is a file of arrays, its inputs."""

    def __init__(self, folder: Path, row: Path) -> None:
        environment = server_environment()
        # The compile cache is the server's, and so is what it found there.
        arguments = [folder, environment["PREHEAT_CACHE_DIR"], row]
        self._command = [sys.executable, "-m", "benchmarks.raw_session", *map(str, arguments)]
        self._environment = environment

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - it is this project's own
            self._command,
            cwd=_ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The process that runs the model."""
        return self._process.pid

    def call_s(self, rows: int, seconds: float) -> float:
        """How long one call takes with so many rows, the mean of ``seconds``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"rows": rows, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{' '.join(self._command)} ended with {self._process.wait()}"
        return line


class Pair:
    """A served model and the same raw, by turns. ``mean_batches`` are those that the server formed, round by round."""

    def __init__(self, server: PreheatServer, raw: RawProcess, name: str, sample: Path, options: Options) -> None:
        self._server = server
        self._raw = raw
        self._name = name
        self._sample = sample
        self._options = options
        self.mean_batches: list[float] = []

    def compare(self, concurrency: int) -> dict[str, Summary]:
        """The rounds of one concurrency."""
        self.mean_batches.clear()
        works = {"served": partial(self._serve, concurrency), "raw": partial(measured, self._raw.pid, self._run)}
        return interleave(f"{self._name}, {concurrency} at a time", works, self._options.rounds)

    def _serve(self, concurrency: int) -> Run:
        before = self._server.executed(self._name)
        run = measured(self._server.pid, partial(self._ask, concurrency))
        self.mean_batches.append(self._server.executed(self._name).mean_batch_since(before))
        return run

    def _ask(self, concurrency: int) -> Latencies:
        return perf_analyzer(
            require(self._options.perf_analyzer, "--perf-analyzer"),
            self._server.grpc_address,
            self._name,
            concurrency=concurrency,
            window_s=self._options.window_s,
            extra=["--input-data", str(self._sample)],
        )

    def _run(self) -> Latencies:
        mean_rows = self.mean_batches[-1]
        sizes = {int(mean_rows), int(mean_rows) + bool(mean_rows % 1)}
        seconds = 3 * self._options.window_s / len(sizes)
        call_s = mean_call_s({size: self._raw.call_s(size, seconds) for size in sizes}, mean_rows)
        return Latencies(mean_rows / call_s, call_s * 1e3, call_s * 1e3)


def mean_call_s(call_s: Mapping[int, float], mean_rows: float) -> float:
    """How long a batch takes on average if batches are of the two whole sizes around ``mean_rows``."""
    whole = int(mean_rows)
    share = mean_rows - whole
    return (1 - share) * call_s[whole] + (share * call_s[whole + 1] if share else 0.0)


def measure(options: Options) -> Section:
    """Measure each model, alone."""
    rows: list[Row] = []
    ratios: dict[str, dict[str, float]] = {}
    versions: list[str] = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            for concurrency, row, ratio in _measure_model(model, Path(folder), options, versions):
                rows.append(row)
                ratios[f"{model.name}, {concurrency} at a time"] = {"served over raw": ratio}
    bars = Bars("raw", "Rows a second, served over raw", "ratio", ratios)
    return Section("Served over raw", _ABOUT, rows, plots=[bars], versions=versions)


def _measure_model(model: Path, folder: Path, options: Options, versions: list[str]) -> list[tuple[int, Row, float]]:
    repository, sample, row = folder / "repository", folder / "sample.json", folder / "row.npz"
    add_model(repository, model, model.name)
    write_sample(model, sample)
    with PreheatServer(repository, options=options.transport_options) as server:
        versions.append(server_version(server.grpc_address))
        np.savez(row, allow_pickle=False, **read_sample(server.grpc_address, model.name, sample))
        with RawProcess(repository / model.name, row) as raw:
            pair = Pair(server, raw, model.name, sample, options)
            return [(each, *_row(pair, model.name, each)) for each in _CONCURRENCY]


def _row(pair: Pair, name: str, concurrency: int) -> tuple[Row, float]:
    found = pair.compare(concurrency)
    served, raw = found["served"], found["raw"]
    ratio = served.times(raw)
    row: Row = {
        "model": name,
        "at a time": concurrency,
        "rows in a batch": round(statistics.median(pair.mean_batches), 2),
        "served rows/s": round(served.rps, 1),
        "raw rows/s": round(raw.rps, 1),
        "ratio": round(ratio, 3),
        "p50 ms": round(served.p50_ms, 2),
        "p99 ms": round(served.p99_ms, 2),
        **served.load(),
    }
    return row, ratio


_ABOUT = """\
Requests of one row by perf_analyzer, over the same session run in a loop in another process, at the batch size that the
server formed on average. What the ratio lacks to 1 is the server, the wire and the client, which share the machine."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
