"""A real server: ``preheat serve`` as a child process, and the repositories of models it is started on."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

# Far beyond what anything here takes: these limits only keep a broken server from hanging the tests.
LIMIT_S = 60.0

GRPC_PORT = re.compile(r"gRPC on (\S+:\d+)")
METRICS_PORT = re.compile(r"metrics on (http://\S+)")
LOADED = re.compile(r" (?:not )?ready: \d+ model versions")
_PLUGINS = Path(__file__).parent / "plugin"
_COMPILE_CACHE = Path(__file__).parents[2] / "build" / "test-compile-cache"


class ServerProcess:
    """A server on free ports of the loopback interface, from ``__enter__`` to ``__exit__``, which kills it if need be.

    ``until`` is the log line that ``__enter__`` waits for, ``limit_s`` for how long. Each log line is passed on to this
    process's standard error as it comes, where pytest keeps it with the test that was running.
    """

    def __init__(
        self,
        *repositories: Path,
        options: Sequence[str] = (),
        until: re.Pattern[str] = LOADED,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._limit_s = limit_s
        self._command = serve_command(*repositories, options=options)
        self._until = until
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read, name="server log")
        self._reader.start()
        try:
            self.grpc_address = self.wait_for_log(GRPC_PORT)[1]
            self.metrics_url = self.wait_for_log(METRICS_PORT)[1]
            self.wait_for_log(self._until)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """The log so far."""
        with self._news:
            return "".join(self._lines)

    @property
    def maps(self) -> str:
        """What the process has mapped, a line each (proc_pid_maps(5))."""
        return Path(f"/proc/{self._process.pid}/maps").read_text()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process.poll() is None

    def wait_for_log(self, pattern: re.Pattern[str] | str, *, after: int = 0) -> re.Match[str]:
        """Block until ``pattern`` occurs in the log, ``after`` so many characters. Fails if the server ends before."""
        match: re.Match[str] | None = None

        def found() -> bool:
            nonlocal match
            match = re.compile(pattern).search("".join(self._lines), after)
            return match is not None or self._ended

        with self._news:
            self._news.wait_for(found, self._limit_s)
        if match is None:
            raise AssertionError(f"the log has no {pattern}:\n{self.log}")
        return match

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, and do not wait for what comes of it."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once the process has ended; negative for the signal that killed it."""
        code = self._process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.send_signal(number)
        return self.wait()

    def insist(self, number: signal.Signals) -> int:
        """Send a signal until the process ends, for one that follows another at once counts as that; the exit code."""
        while self.running:
            self.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End the process now, if it has not ended, and wait until all of its log is read."""
        self._process.kill()
        self.wait()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for line in output:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
                sys.stderr.write(line)
        with self._news:
            self._ended = True
            self._news.notify_all()


def serve_command(*repositories: Path, options: Sequence[str] = ()) -> list[str]:
    """The command that serves ``repositories``; later options win over those that it begins with.

    They are free ports, and that what was written just now need not rest first.
    """
    usual = ("--grpc-port", "0", "--metrics-port", "0", "--settle-seconds", "0")
    return [sys.executable, "-m", "preheat", "serve", *map(str, repositories), *usual, *options]


def server_environment() -> dict[str, str]:
    """This process's environment without the server's settings, and with the tests' own backend to be found.

    What is compiled is kept for the next run of the tests. TEST_TRANSPORT says which transport is tested.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREHEAT_")}
    path = os.pathsep.join([str(_PLUGINS), *filter(None, [inherited.get("PYTHONPATH")])])
    return inherited | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "PREHEAT_CACHE_DIR": str(_COMPILE_CACHE),
        "PREHEAT_TRANSPORT": os.environ.get("TEST_TRANSPORT", "grpcio"),
    }


def write_model(repository: Path, name: str, config: str | None, *, versions: Iterable[int] = (1,)) -> Path:
    """Write a model with empty version folders; the model's folder."""
    folder = repository / name
    folder.mkdir(parents=True)
    for version in versions:
        (folder / str(version)).mkdir()
    if config is not None:
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


# Of a model that misbehaves after so many executions: its batches are not weighed, for which they may be run again.
NOT_WEIGHED = "dynamic_batching { preferred_batch_size: [ 8 ] }"


def echo_config(
    *,
    backend: str = "double",
    datatype: str = "INT64",
    dims: Sequence[int] = (4,),
    max_batch_size: int = 8,
    extra: str = "dynamic_batching { }",
    parameters: Mapping[str, str | int | float | bool] | None = None,
) -> str:
    """The configuration of a model that answers INPUT0 as OUTPUT0."""
    shape = ", ".join(map(str, dims))
    lines = [f'backend: "{backend}"', f"max_batch_size: {max_batch_size}", extra]
    lines += [
        f'{kind} {{ name: "{kind.upper()}0" data_type: TYPE_{datatype} dims: [ {shape} ] }}'
        for kind in ("input", "output")
    ]
    for key, value in (parameters or {}).items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}')
    return "\n".join(lines) + "\n"
