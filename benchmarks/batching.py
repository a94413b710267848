"""What dynamic batching gains and costs: off, on, and on with a delay of 5 ms.

    python -m benchmarks.batching

For a model that costs nothing (identity) and one that computes (minilm_onnx). All variants are in one server and are
asked in turn, with one sample again and again.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.clients import perf_analyzer
from benchmarks.options import EXAMPLES, Options, require
from benchmarks.plots import Bars
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.rounds import Latencies, Summary, interleave, measured
from benchmarks.samples import write_sample
from benchmarks.servers import PreheatServer, server_version

_MODELS = ("identity", "minilm_onnx")
_CONCURRENCY = (1, 8, 32)


VARIANTS = {
    "off": "",
    "on": "dynamic_batching { }",
    "on, 5 ms": "dynamic_batching { max_queue_delay_microseconds: 5000 }",
}


def measure(options: Options) -> Section:
    """Measure each model in each variant."""
    rows: list[Row] = []
    plots: list[Bars] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        for model in _MODELS:
            _add_variants(repository, model)
        with PreheatServer(repository, options=options.transport_options) as server:
            for model in _MODELS:
                sample = Path(folder) / f"{model}.json"
                write_sample(EXAMPLES / model, sample)
                found = {each: _measure(server, model, sample, each, options) for each in _CONCURRENCY}
                rows += [_row(model, each, name, found[each]) for each in _CONCURRENCY for name in VARIANTS]
                plots.append(_bars(model, found))
            versions = [server_version(server.grpc_address)]
    return Section("Dynamic batching", _ABOUT, rows, plots=plots, versions=versions)


def _add_variants(repository: Path, model: str) -> None:
    for number, batching in enumerate(VARIANTS.values()):
        add_model(repository, EXAMPLES / model, f"{model}_{number}", batching=batching)


def _measure(server: PreheatServer, model: str, sample: Path, concurrency: int, options: Options) -> dict[str, Summary]:
    def ask(name: str) -> Latencies:
        return perf_analyzer(
            require(options.perf_analyzer, "--perf-analyzer"),
            server.grpc_address,
            name,
            concurrency=concurrency,
            window_s=options.window_s,
            extra=["--input-data", str(sample)],
        )

    works = {
        name: partial(measured, server.pid, partial(ask, f"{model}_{number}")) for number, name in enumerate(VARIANTS)
    }
    return interleave(f"{model}, {concurrency} at a time", works, options.rounds)


def _row(model: str, concurrency: int, name: str, summaries: Mapping[str, Summary]) -> Row:
    return {
        "model": model,
        "at a time": concurrency,
        "batching": name,
        **summaries[name].columns(),
        "times off": round(summaries[name].times(summaries["off"]), 2),
    }


def _bars(model: str, found: Mapping[int, Mapping[str, Summary]]) -> Bars:
    groups = {
        f"{concurrency} at a time": {name: summary.rps for name, summary in summaries.items()}
        for concurrency, summaries in found.items()
    }
    return Bars(f"batching-{model.replace('_', '-')}", f"Dynamic batching, {model}", "requests/s", groups)


_ABOUT = """\
Requests of one row by perf_analyzer. With a delay, a batch waits so long for more rows, unless it is full: callers that
wait for their answers pay for it wherever there are fewer of them than rows in a batch."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
