"""What ``preheat`` says, and exits with, when it is asked for what cannot be."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, serve_command, server_environment, write_model


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=server_environment() | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def _assert_refused(result: subprocess.CompletedProcess[str], code: int, *fragments: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    _assert_refused(_run(serve_command(tmp_path / "absent")), 1, str(tmp_path / "absent"), "No such file", "folder")


def test_a_repository_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "models.zip"
    file.touch()
    _assert_refused(_run(serve_command(file)), 1, str(file), "Not a directory")


@pytest.mark.parametrize(("flag", "what"), [("--grpc-port", "cannot listen"), ("--metrics-port", "for metrics")])
def test_a_port_that_is_taken(tmp_path: Path, taken_port: int, flag: str, what: str) -> None:
    result = _run(serve_command(tmp_path, options=[flag, str(taken_port)]))
    _assert_refused(result, 1, f"127.0.0.1:{taken_port}", what)


def test_a_backend_to_import_that_there_is_not(tmp_path: Path) -> None:
    result = _run(serve_command(tmp_path, options=["--import-backends", "double,onnx"]))
    _assert_refused(result, 2, "--import-backends: 'onnx': no such backend; there are", "onnxruntime")


def test_backends_are_imported_that_no_model_needs_yet(tmp_path: Path) -> None:
    for options, imported in (([], False), (["--import-backends", "double,eager"], True)):
        with ServerProcess(tmp_path, options=options) as server:
            assert ("libtorch_cpu.so" in server.maps) == imported


def test_a_backend_to_import_whose_library_is_missing_is_told_and_in_nobodys_way(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, options=["--import-backends", "absent,double"]) as server:
        assert "--import-backends: backend 'absent' cannot be used: No module named 'absent_engine'" in server.log


def test_a_second_server_on_the_port_of_a_first_does_not_share_its_traffic(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as first:
        port = first.grpc_address.rpartition(":")[2]
        _assert_refused(_run(serve_command(tmp_path, options=["--grpc-port", port])), 1, f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--grpc-port", "70000", "1 to 65535"),
        ("--exit-timeout-seconds", "nan", "from 0 to 86400"),
        ("--log-level", "loud", "debug, info, warning, error"),
        ("--host", " ", "not be empty"),
    ],
)
def test_a_flag_with_a_value_that_cannot_be(tmp_path: Path, flag: str, value: str, allowed: str) -> None:
    result = _run(serve_command(tmp_path, options=[f"{flag}={value}"]))
    _assert_refused(result, 2, flag, repr(value), allowed)


def test_a_setting_in_the_environment_that_cannot_be(tmp_path: Path) -> None:
    result = _run(serve_command(tmp_path), {"PREHEAT_LOAD_CONCURRENCY": "none"})
    _assert_refused(result, 2, "PREHEAT_LOAD_CONCURRENCY", "'none'", "at least 1")


def test_a_misspelt_setting_in_the_environment_is_worth_a_warning(tmp_path: Path) -> None:
    # The server starts with it, so another mistake has to end the run.
    result = _run(serve_command(tmp_path / "absent"), {"PREHEAT_GRPC_PROT": "8001"})
    _assert_refused(result, 1, "WARNING", "PREHEAT_GRPC_PROT")


@pytest.mark.parametrize("arguments", [["serve"], ["bake"], ["serve", ".", "--colour", "red"]])
def test_a_command_that_is_not_there(arguments: Sequence[str]) -> None:
    _assert_refused(_run([sys.executable, "-m", "preheat", *arguments]), 2, "usage: preheat")


def test_config_shows_what_a_model_is_served_as(tmp_path: Path) -> None:
    model = write_model(tmp_path, "echo", echo_config())
    result = _run([sys.executable, "-m", "preheat", "config", str(model)])
    assert (result.returncode, result.stderr) == (0, "")
    assert 'name: "echo"' in result.stdout
    assert "max_batch_size: 8" in result.stdout


def test_config_of_a_broken_model_says_what_is_wrong(tmp_path: Path) -> None:
    model = write_model(tmp_path, "broken", "max_batch_size: -1")
    _assert_refused(_run([sys.executable, "-m", "preheat", "config", str(model)]), 1, "max_batch_size: -1")


def test_backends_are_listed_with_what_they_found() -> None:
    result = _run([sys.executable, "-m", "preheat", "backends"])
    assert result.returncode == 0
    for name in ("double", "eager", "onnxruntime", "gated"):
        assert any(line.split()[0] == name for line in result.stdout.splitlines())
