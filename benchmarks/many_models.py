"""A thousand models in a repository: what it takes to start, to see that one has changed, and to ask about them.

python -m benchmarks.many_models --output docs/benchmarks/many-models
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tritonclient.grpc as grpcclient
from benchmarks.cores import CoreMeter, resident_mib
from benchmarks.report import Row, Section, write_report
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from tests.e2e.server_process import echo_config, write_model

_ROOT = Path(__file__).parents[1]
_SETTLE_S = 0.5
_IDLE_S = 20.0


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=int, default=1000, help="how many (default 1000)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "many-models", help="the page to write")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    section = measure(arguments.models)
    command = f"python -m benchmarks.many_models {' '.join(sys.argv[1:])}".strip()
    write_report([section], arguments.output, command)
    print(section.markdown)
    raise SystemExit(bool(section.failures))


def measure(count: int) -> Section:
    """Serve ``count`` models, and change one."""
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place) / "repository"
        for number in range(count):
            write_model(repository, f"model_{number:04}", echo_config())
        rows: list[Row] = [
            _timed_apart("read every configuration (scan)", "preheat.repository.scan", "scan", repository),
            _timed_apart("look at every file (stamps)", "preheat.repository.watching", "stamp_models", repository),
        ]
        began_s = time.perf_counter()
        options = ["--settle-seconds", str(_SETTLE_S), "--cache-dir", "none"]
        with PreheatServer(repository, options=options) as server:
            rows.append(_row("start, to all READY", time.perf_counter() - began_s))
            with grpcclient.InferenceServerClient(server.grpc_address) as client:
                rows += _ask(client, "quiet")
                meter = CoreMeter(server.pid)
                time.sleep(_IDLE_S)
                idle_cores = meter.read().server
                loads = server.log.count("begins to load")
                rows.append(_change(repository, client))
                touched = server.log.count("begins to load") - loads
                rows.append(_delete(repository, client))
                rows.append(_come(repository, client))
            notes = [
                f"The server holds {resident_mib(server.pid):.0f} MiB, and uses {idle_cores:.3f} cores while nothing "
                f"is asked and nothing changes. The change of one model loaded {touched}."
            ]
            failures = [f"the change of one model loaded {touched}"] if touched != 1 else []
            version = server_version(server.grpc_address)
    title = f"{count:,} models"
    return Section(title, _ABOUT, rows, notes=notes, versions=[version], failures=failures)


def _ask(client: grpcclient.InferenceServerClient, when: str) -> list[Row]:
    return [
        _timed(f"RepositoryIndex, {when}", client.get_model_repository_index),
        _timed(f"ServerReady, {when}", client.is_server_ready),
        _timed(f"ModelReady, {when}", lambda: client.is_model_ready("model_0007")),
    ]


def _change(repository: Path, client: grpcclient.InferenceServerClient) -> Row:
    """A new version of one, renamed in, until it is READY."""
    (repository / "model_0007" / ".new").mkdir()
    (repository / "model_0007" / ".new" / "file").touch()
    time.sleep(_SETTLE_S)
    began_s = time.perf_counter()
    (repository / "model_0007" / ".new").rename(repository / "model_0007" / "2")
    _wait_until(lambda: client.is_model_ready("model_0007", "2"))
    return _row("a new version renamed in, to READY", time.perf_counter() - began_s)


def _delete(repository: Path, client: grpcclient.InferenceServerClient) -> Row:
    began_s = time.perf_counter()
    shutil.rmtree(repository / "model_0008")
    _wait_until(lambda: not client.is_model_ready("model_0008"))
    return _row(f"one deleted, to served no more ({_SETTLE_S} s of rest in it)", time.perf_counter() - began_s)


def _come(repository: Path, client: grpcclient.InferenceServerClient) -> Row:
    began_s = time.perf_counter()
    write_model(repository, "newcomer", echo_config())
    _wait_until(lambda: client.is_model_ready("newcomer"))
    return _row(f"one copied in, to READY ({_SETTLE_S} s of rest in it)", time.perf_counter() - began_s)


def _wait_until(holds: Callable[[], object]) -> None:
    until_s = time.perf_counter() + 60.0
    while not holds():
        if time.perf_counter() > until_s:
            raise TimeoutError
        time.sleep(0.002)


def _timed(what: str, call: Callable[[], object]) -> Row:
    """The median of several calls."""
    took_s = []
    for _ in range(20):
        began_s = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - began_s)
    return _row(what, statistics.median(took_s))


def _timed_apart(what: str, module: str, function: str, repository: Path) -> Row:
    """A function of the server's, in a process of its own: its protocol's classes cannot be in that of a client."""
    code = (
        f"import statistics, sys, time; from pathlib import Path; from {module} import {function} as call\n"
        "took = []\n"
        "for _ in range(20):\n"
        "    began = time.perf_counter(); call([Path(sys.argv[1])]); took.append(time.perf_counter() - began)\n"
        "print(statistics.median(took))"
    )
    command = [sys.executable, "-c", code, str(repository)]
    return _row(what, float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))  # noqa: S603 - ours


def _row(what: str, seconds: float) -> Row:
    return {"what": what, "ms": round(seconds * 1e3, 2)}


_ABOUT = """\
Models of the backend `double`, with a configuration each and nothing to load, in one repository that the server
watches: what is measured is what a model costs beside its own loading. Medians of 20 where a call is timed."""


if __name__ == "__main__":
    main()
