"""A thousand models in a repository: what it takes to start, to see that one has changed, and to ask about them.

python -m benchmarks.many_models --output docs/benchmarks/many-models
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import tritonclient.grpc as grpcclient
from benchmarks.cores import CoreMeter, resident_mib
from benchmarks.report import Row, Section, write_report
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from benchmarks.timings import loads, summary
from tests.e2e.server_process import echo_config, write_model

_ROOT = Path(__file__).parents[1]
_SETTLE_S = 0.5
_LIMIT_S = 60.0
_TIMES, _CHANGES = 20, 5
# What is asked about is none of those that change.
_ASKED = "model_0007"


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=int, default=1000, help="how many, at least 30 (default 1000)")
    add("--idle", type=float, default=40.0, help="seconds to see what the server uses while nothing is (default 40)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "many-models", help="the page to write")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    section = measure(arguments.models, arguments.idle)
    command = f"python -m benchmarks.many_models --models {arguments.models} --idle {arguments.idle}"
    write_report([section], arguments.output, command)
    print(section.markdown)
    raise SystemExit(bool(section.failures))


def measure(count: int, idle_s: float) -> Section:
    """Serve ``count`` models, and change some."""
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place) / "repository"
        for number in range(count):
            write_model(repository, _name(number), echo_config())
        rows: list[Row] = [
            _timed_apart("read every configuration (scan)", "preheat.repository.scan", "scan", repository),
            _timed_apart("look at every file (stamps)", "preheat.repository.stamps", "stamp_models", repository),
        ]
        options = ["--settle-seconds", str(_SETTLE_S), "--cache-dir", "none"]
        began_s = time.perf_counter()
        with PreheatServer(repository, options=options) as server:
            rows.append(summary("start, to all READY", [time.perf_counter() - began_s]))
            _say(f"{rows[-1]['median ms']} ms to all READY")
            with grpcclient.InferenceServerClient(server.grpc_address) as client:
                bench = _Bench(server, repository, client)
                rows += bench.ask_quietly()
                idle_cores = bench.idle(idle_s)
                rows += bench.change()
                version = server_version(server.grpc_address)
                notes = [
                    f"The server holds {resident_mib(server.pid):.0f} MiB, and uses {idle_cores:.3f} cores while it "
                    f"watches and nothing is asked and nothing changes, over {idle_s:.0f} s. Of {bench.changes} "
                    f"changes, each of one model, {len(bench.failures)} touched another."
                ]
                return Section(f"{count:,} models", _ABOUT, rows, notes, versions=[version], failures=bench.failures)


class _Bench:
    """A server with models, what is done to them, and which it loaded for that. ``failures`` are what it should not."""

    def __init__(self, server: PreheatServer, repository: Path, client: grpcclient.InferenceServerClient) -> None:
        self._server = server
        self._repository = repository
        self._client = client
        self._loaded = len(loads(server.log))
        self.changes = 0
        self.failures: list[str] = []

    def ask_quietly(self) -> list[Row]:
        """How long it takes to ask, while nothing else is."""
        calls = {"RepositoryIndex": self._client.get_model_repository_index, **_ready_checks(self._client)}
        return [summary(f"{name}, quiet", _times(call)) for name, call in calls.items()]

    def idle(self, seconds: float) -> float:
        """The cores that the server uses while nothing is to be done."""
        meter = CoreMeter(self._server.pid)
        time.sleep(seconds)
        self._note("nothing", [])
        return meter.read().server

    def change(self) -> list[Row]:
        """How long it takes until a change is served, of several in turn, and to ask meanwhile."""
        kinds = {
            "a new version renamed in, to READY": self._rename_in,
            f"one copied in, to READY ({_SETTLE_S} s of rest in it)": self._come,
            f"one deleted, to served no more ({_SETTLE_S} s of rest in it)": self._delete,
            f"another config.pbtxt, to READY ({_SETTLE_S} s of rest in it)": self._configure,
        }
        rows = []
        with _Asking(self._server.grpc_address) as asking:
            for what, do in kinds.items():
                rows.append(summary(what, [do(number) for number in range(_CHANGES)]))
                _say(f"{what}: {rows[-1]['median ms']} ms")
        return rows + [summary(f"{name}, during changes", took_s) for name, took_s in asking.took_s.items()]

    def _rename_in(self, number: int) -> float:
        """A new version of one."""
        name = _name(10 + number)
        hidden = self._repository / name / ".new"
        hidden.mkdir()
        (hidden / "file").touch()
        time.sleep(_SETTLE_S)
        took_s = _took(
            lambda: hidden.rename(hidden.with_name("2")), lambda: bool(self._client.is_model_ready(name, "2"))
        )
        self._note("a new version", [name])
        return took_s

    def _come(self, number: int) -> float:
        name = f"newcomer_{number}"
        took_s = _took(
            lambda: write_model(self._repository, name, echo_config()), lambda: bool(self._client.is_model_ready(name))
        )
        self._note("a new model", [name])
        return took_s

    def _delete(self, number: int) -> float:
        name = _name(20 + number)
        took_s = _took(lambda: shutil.rmtree(self._repository / name), lambda: not self._client.is_model_ready(name))
        self._note("a deletion", [])
        return took_s

    def _configure(self, number: int) -> float:
        name = _name(15 + number)
        ready = self._server.log.count(f"{name}/1 READY")
        took_s = _took(
            lambda: (self._repository / name / "config.pbtxt").write_text(echo_config(max_batch_size=4)),
            lambda: self._server.log.count(f"{name}/1 READY") > ready,
        )
        self._note("another configuration", [name])
        return took_s

    def _note(self, what: str, expected: Sequence[str]) -> None:
        """Hold what was loaded since the last time against what had to be."""
        loaded = loads(self._server.log)[self._loaded :]
        self._loaded += len(loaded)
        self.changes += what != "nothing"
        if loaded != expected:
            self.failures.append(f"{what} of {' '.join(expected) or 'nothing'} loaded {' '.join(loaded) or 'nothing'}")


class _Asking:
    """Asks whether server and model are ready, again and again, on a thread of its own; ``took_s`` by what it asks."""

    def __init__(self, address: str) -> None:
        self._client = grpcclient.InferenceServerClient(address)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took_s: dict[str, list[float]] = {name: [] for name in _ready_checks(self._client)}

    def __enter__(self) -> "_Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            for name, call in _ready_checks(self._client).items():
                self.took_s[name] += _times(call, 1)


def _name(number: int) -> str:
    return f"model_{number:04}"


def _ready_checks(client: grpcclient.InferenceServerClient) -> dict[str, Callable[[], object]]:
    return {"ServerReady": client.is_server_ready, "ModelReady": lambda: client.is_model_ready(_ASKED)}


def _took(do: Callable[[], object], holds: Callable[[], bool]) -> float:
    """Seconds from when something is done until something holds."""
    began_s = time.perf_counter()
    do()
    while not holds():
        if time.perf_counter() > began_s + _LIMIT_S:
            raise TimeoutError
        time.sleep(0.002)
    return time.perf_counter() - began_s


def _times(call: Callable[[], object], count: int = _TIMES) -> list[float]:
    took_s = []
    for _ in range(count):
        began_s = time.perf_counter()
        assert call(), "what is ready is said not to be"
        took_s.append(time.perf_counter() - began_s)
    return took_s


def _timed_apart(what: str, module: str, function: str, repository: Path) -> Row:
    """A function of the server's, in a process of its own: its protocol's classes cannot be in that of a client."""
    code = (
        f"import sys, time; from pathlib import Path; from {module} import {function} as call\n"
        f"for _ in range({_TIMES}):\n"
        "    began = time.perf_counter(); call([Path(sys.argv[1])]); print(time.perf_counter() - began)\n"
    )
    command = [sys.executable, "-c", code, str(repository)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - ours
    return summary(what, [float(line) for line in printed.split()])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_ABOUT = """\
Models of the backend `double`, with a configuration each and nothing to load, in one repository that the server
watches: what is measured is what a model costs beside its own loading."""


if __name__ == "__main__":
    main()
