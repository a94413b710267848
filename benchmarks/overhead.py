"""What a server costs around a model that does nothing, beside NVIDIA Triton's with its Python backend.

    python -m benchmarks.overhead --triton-command COMMAND --triton-address 127.0.0.1:8001

Tensors of 64 bytes and of 4 MiB, inline and by system shared memory, to an identity model. All servers run at the same
time and are asked in turn. What cannot be measured, for want of a server, a client or an RPC, is said and left out.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from benchmarks.clients import h2load, perf_analyzer, write_body
from benchmarks.options import EXAMPLES, Options, require
from benchmarks.plots import Bars
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.rounds import Latencies, Summary, interleave, measured
from benchmarks.servers import (
    Endpoint,
    PreheatServer,
    TritonServer,
    has_shared_memory,
    installed_transports,
    server_version,
)

_MODEL = "identity"
_BARE = ", nothing behind it"
_TRITON_MODELS = Path(__file__).parent / "triton_models"
_SMALL, _LARGE = 16, 2**20
_LARGE_BYTES = 4 * _LARGE


class BareServer(PreheatServer):
    """A transport that answers each request with the same 64 bytes: see ``bare_server.py``."""

    def __init__(self, repository: Path, *, options: Sequence[str]) -> None:
        super().__init__(repository, options=options)
        # The same command, less the interpreter's "-m preheat serve".
        self._command = [sys.executable, "-m", "benchmarks.bare_server", *self._command[4:]]


@dataclass(frozen=True, slots=True)
class Case:
    """A size and a way to send it. ``ask`` takes an address and a concurrency.

    ``small``: the tensors are those that bare transports answer with.
    """

    name: str
    concurrency: Sequence[int]
    ask: Callable[[str, int], Latencies]
    shared_memory: bool = False
    small: bool = False


def measure(options: Options) -> Section:
    """Measure each case with each server that can be had."""
    notes: list[str] = []
    rows: list[Row] = []
    plots: list[Bars] = []
    with tempfile.TemporaryDirectory() as folder, _contenders(options, Path(folder), notes) as contenders:
        for each in contenders:
            if not each.name.endswith(_BARE):
                _check_identity(each)
        for case in _cases(options, Path(folder)):
            found = _measure_case(case, contenders, options, notes)
            rows += [_row(case, number, name, summaries) for number, summaries in found.items() for name in summaries]
            plots += [_bars(case, found)] if found else []
        versions = [server_version(each.address) for each in contenders]
    return Section("Around a model that does nothing", _ABOUT, rows, notes, plots, versions=versions)


@contextmanager
def _contenders(options: Options, folder: Path, notes: list[str]) -> Iterator[list[Endpoint]]:
    repository = folder / "repository"
    add_model(repository, EXAMPLES / _MODEL, _MODEL)
    transports = installed_transports()
    if "native" not in transports:
        notes.append("The native transport is not installed and was left out.")
    with ExitStack() as stack:
        found = []
        for transport in transports:
            flags = ["--transport", transport, "--allow-client-shm", "true"]
            server = stack.enter_context(PreheatServer(repository, options=flags))
            found.append(Endpoint(f"Preheat, {transport}", server.grpc_address, server.pid))
            bare = stack.enter_context(BareServer(repository, options=["--transport", transport]))
            found.append(Endpoint(f"{transport}{_BARE}", bare.grpc_address, bare.pid))
        if options.triton_command:
            # A copy, since Python leaves bytecode beside what it imports.
            models = shutil.copytree(_TRITON_MODELS, folder / "triton")
            triton = TritonServer(options.triton_command, options.triton_address, models)
            found.append(stack.enter_context(triton).endpoint)
        else:
            notes.append("Triton was not measured: `--triton-command` says how to start it.")
        yield found


def _cases(options: Options, folder: Path) -> list[Case]:
    program, loader = require(options.perf_analyzer, "--perf-analyzer"), require(options.h2load, "--h2load")
    body = folder / "body"
    write_body(_MODEL, _LARGE, body)

    def analyze(address: str, concurrency: int, *, elements: int, extra: Sequence[str] = ()) -> Latencies:
        shape = ["--shape", f"INPUT0:{elements}", *extra]
        return perf_analyzer(program, address, _MODEL, concurrency=concurrency, window_s=options.window_s, extra=shape)

    def load(address: str, concurrency: int) -> Latencies:
        return h2load(loader, address, body, concurrency=concurrency, seconds=3 * options.window_s)

    shared = ["--shared-memory", "system", "--output-shared-memory-size", str(_LARGE_BYTES)]
    return [
        Case("64 bytes, inline", (1, 8, 32), partial(analyze, elements=_SMALL), small=True),
        Case("4 MiB, inline", (1, 8), load),
        Case("4 MiB, shared memory", (1, 8), partial(analyze, elements=_LARGE, extra=shared), shared_memory=True),
    ]


def _measure_case(
    case: Case, contenders: Sequence[Endpoint], options: Options, notes: list[str]
) -> dict[int, dict[str, Summary]]:
    contenders = [each for each in contenders if case.small or not each.name.endswith(_BARE)]
    able = [each for each in contenders if not case.shared_memory or has_shared_memory(each.address)]
    notes += [f"{each.name} has no system shared memory: left out." for each in contenders if each not in able]
    if not able:
        return {}
    return {
        concurrency: interleave(
            f"{case.name}, {concurrency} at a time",
            {each.name: partial(measured, each.pid, partial(case.ask, each.address, concurrency)) for each in able},
            options.rounds,
        )
        for concurrency in case.concurrency
    }


def _row(case: Case, concurrency: int, name: str, summaries: dict[str, Summary]) -> Row:
    triton = next((summary for other, summary in summaries.items() if other.startswith("Triton")), None)
    times = None if triton is None else round(summaries[name].times(triton), 2)
    return {
        "tensors": case.name,
        "at a time": concurrency,
        "server": name,
        **summaries[name].columns(),
        "times Triton": times,
    }


def _bars(case: Case, found: dict[int, dict[str, Summary]]) -> Bars:
    name = "overhead-" + case.name.lower().replace(",", "").replace(" ", "-")
    groups = {
        f"{concurrency} at a time": {server: summary.rps for server, summary in summaries.items()}
        for concurrency, summaries in found.items()
    }
    return Bars(name, f"An identity model, {case.name}", "requests/s", groups)


def _check_identity(endpoint: Endpoint) -> None:
    """What is fast must be right as well."""
    sent = np.random.default_rng(0).random((1, _SMALL), np.float32)
    tensor = grpcclient.InferInput("INPUT0", sent.shape, "FP32")
    tensor.set_data_from_numpy(sent)
    with grpcclient.InferenceServerClient(endpoint.address) as client:
        answer = client.infer(_MODEL, [tensor]).as_numpy("OUTPUT0")
    assert np.array_equal(sent, answer), f"{endpoint.name} does not answer with what it was sent"


_ABOUT = """\
One row of FP32 to a model that answers with it, one instance, `dynamic_batching { }`, asked in turn by perf_analyzer;
by h2load where tensors of 4 MiB are inline, since perf_analyzer then takes longer than the servers. Medians of rounds;
"times Triton" is the median of each round's ratio. Rounds in which others used more than 0.2 cores do not count.
A transport with nothing behind it answers at once, always with the same bytes: no server on it can do more."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
