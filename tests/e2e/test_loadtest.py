"""Load tests against a real server: they ask what they should, at once, and say whether it was good enough."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode

import pytest
from tests.e2e.scrape import scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model

ROOT = Path(__file__).parents[2]
STEADY = "loadtests/locustfile.py"
RAMP = "loadtests/ramp.py"


def _command(server: ServerProcess, profile: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", profile, "--host", server.grpc_address, *options]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}


def _run(server: ServerProcess, *options: str, profile: str = STEADY) -> subprocess.CompletedProcess[str]:
    command = _command(server, profile, "--headless", "--json", "--only-summary", *options)
    result = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=2 * LIMIT_S, check=False
    )
    sys.stderr.write(result.stderr)
    return result


def _statistics(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Of the one model that was asked, as Locust prints them."""
    (statistics,) = json.loads(result.stdout)
    assert isinstance(statistics, dict)
    return statistics


def _steady(users: int, seconds: int) -> Sequence[str]:
    return "--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"


def test_a_load_that_keeps_to_its_thresholds_ends_with_code_0(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "echo", echo_config(dims=[-1]))
    rows = [{"INPUT0": {"content": list(range(8)), "shape": [8]}}, {"INPUT0": {"content": [1] * 8, "shape": [8]}}]
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}), encoding="utf-8")
    with ServerProcess(tmp_path / "models") as server:
        result = _run(
            server, "--model=echo", "--batch=3", f"--input-data={tmp_path / 'rows.json'}", *_steady(4, 3),
            "--p99-ms=5000", "--min-rps=1", "--max-failures=0",
        )  # fmt: skip
        assert result.returncode == 0, result.stdout
        statistics = _statistics(result)
        assert (statistics["name"], statistics["num_failures"]) == ("echo", 0)
        # Nobody was cut off as the test ended: what the server has answered, Locust has counted.
        requests = statistics["num_requests"]
        found = scrape_until(server, lambda found: found.total("nv_inference_request_success") == requests)
        assert found.total("nv_inference_count") == 3 * requests


def test_a_slow_model_breaks_the_threshold_while_users_ask_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "slow", echo_config(parameters={"seconds": 0.2}))
    with ServerProcess(tmp_path) as server:
        result = _run(server, "--model=slow", *_steady(8, 3), "--p99-ms=100", "--min-rps=10000")
        assert result.returncode == 1
        assert re.search(r"threshold broken: p99 is (\d+) ms, \d+ ms above the 100 ms of --p99-ms", result.stderr)
        assert re.search(r"threshold broken: \S+ requests were answered each second, .* of --min-rps", result.stderr)
        requests = _statistics(result)["num_requests"]
        found = scrape_until(server, lambda found: found.total("nv_inference_request_success") == requests)
    # Those who ask while a batch runs share the next: one user at a time would get batches of one row.
    assert requests / found.total("nv_inference_exec_count") > 2


def test_failures_are_counted_and_may_be_allowed(tmp_path: Path) -> None:
    write_model(tmp_path, "moody", echo_config(extra="", parameters={"behavior": "fail", "every": 10}))
    with ServerProcess(tmp_path) as server:
        strict = _run(server, "--model=moody", *_steady(2, 2))
        lenient = _run(server, "--model=moody", *_steady(2, 2), "--max-failures=50%")
    assert (strict.returncode, lenient.returncode) == (1, 0)
    assert re.search(r"threshold broken: \d+ of \d+ requests failed", strict.stderr)
    statistics = _statistics(lenient)
    assert statistics["num_failures"] == pytest.approx(statistics["num_requests"] / 10, abs=2)


def test_a_ramp_says_what_came_of_each_step(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path) as server:
        result = _run(server, "--model=echo", "--ramp=1,3", "--step-seconds=2", profile=RAMP)
    assert result.returncode == 0, result.stdout
    steps = re.findall(r"ramp: (\d+) users: (\S+) answered/s, p50 \d+ ms, p99 \d+ ms, 0 failed", result.stderr)
    assert [users for users, _ in steps] == ["1", "3"]
    assert all(float(rate) > 0 for _, rate in steps)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model=nobody"], "'nobody'"),
        (["--model=echo", "--p99-ms=soon"], "--p99-ms: 'soon'"),
    ],
)
def test_a_test_that_cannot_be_says_why_and_ends_with_code_1(
    tmp_path: Path, options: Sequence[str], reason: str
) -> None:
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path) as server:
        result = _run(server, *options, *_steady(1, 30))
    assert result.returncode == 1
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


class Page:
    """Locust with its page, from ``__enter__`` to ``__exit__``."""

    def __init__(self, server: ServerProcess) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._command = _command(server, STEADY, "--web-host=127.0.0.1", f"--web-port={port}")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(LIMIT_S)

    def options(self) -> dict[str, Any]:
        """The options that it shows, as soon as it is there."""
        limit_s = time.monotonic() + LIMIT_S
        while True:
            try:
                page = self._fetch("/")
                break
            except URLError:
                assert time.monotonic() < limit_s, "the page never came"
                time.sleep(0.1)
        match = re.search(r"window.templateArgs = (.*)", page)
        assert match is not None, page
        shown, _ = json.JSONDecoder().raw_decode(match[1])
        options: dict[str, Any] = shown["extra_options"]
        return options

    def post(self, path: str, **form: str) -> None:
        """Press a button. Fails if the page says that it did not work."""
        assert json.loads(self._fetch(path, urlencode(form).encode()))["success"]

    def _fetch(self, path: str, body: bytes | None = None) -> str:
        with urllib.request.urlopen(self._url + path, body, timeout=LIMIT_S) as response:  # noqa: S310 - http above
            text: bytes = response.read()
        return text.decode()


def test_the_page_has_the_options_and_runs_a_test(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path) as server, Page(server) as page:
        options = page.options()
        assert options["batch"]["default_value"] == "1"
        assert "99th percentile" in options["p99_ms"]["help_text"]
        page.post("/swarm", model="echo", batch="2", user_count="3", spawn_rate="3", host=server.grpc_address)
        found = scrape_until(server, lambda found: found.total("nv_inference_request_success") > 20)
        assert found.total("nv_inference_count") == 2 * found.total("nv_inference_request_success")
        page.post("/stop")
