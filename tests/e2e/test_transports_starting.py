"""How a server with either transport starts, and what the operator is told where it cannot."""

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.transports import TRANSPORTS, assert_echoes, installed, refused_start
from tests.e2e.wire import SERVING, Wire

pytestmark = pytest.mark.transports


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_port_that_is_taken_ends_the_start_and_is_named(tmp_path: Path, transport: str, taken_port: int) -> None:
    result = refused_start(tmp_path, "--transport", transport, "--grpc-port", str(taken_port))
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken_port}" in result.stderr
    assert "--grpc-port" in result.stderr


def test_a_start_that_fails_leaves_no_folder_behind(
    tmp_path: Path, transport: str, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, temporary = tmp_path / "models", tmp_path / "temporary"
    models.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    refused_start(models, "--transport", transport, "--grpc-port", str(taken_port), "--cache-dir", "none")
    assert list(temporary.iterdir()) == []


def test_a_server_that_stops_leaves_no_folder_behind(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, temporary = tmp_path / "models", tmp_path / "temporary"
    models.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with ServerProcess(models, options=("--transport", transport, "--cache-dir", "none")) as server:
        for folder in temporary.iterdir():
            # Whoever can reach what is in it goes past the limits of the transport before it.
            assert folder.stat().st_mode & 0o077 == 0
        assert server.terminate() == 0
    assert list(temporary.iterdir()) == []


@pytest.fixture
def ipv6(tmp_path: Path, transport: str) -> Iterator[ServerProcess]:
    """A server on the loopback address of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as exc:
        pytest.skip(f"there is no IPv6 here: {exc}")
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path, options=("--transport", transport, "--host", "::1")) as server:
        yield server


def test_an_ipv6_address_is_served(ipv6: ServerProcess) -> None:
    port = ipv6.grpc_address.rpartition(":")[2]
    with Wire(f"[::1]:{port}") as wire:
        assert_echoes(wire)
        assert wire.health() == SERVING


def test_an_ipv6_address_is_logged_in_the_brackets_that_clients_need(ipv6: ServerProcess) -> None:
    assert ipv6.grpc_address.startswith("[::1]:")
    assert ipv6.metrics_url.startswith("http://[::1]:")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--tls-certificate", "a.pem", "--tls-key", "a.key"), "--tls-certificate"),
        (("--response-compression", "high"), "--response-compression"),
        (("--max-connection-age-seconds", "60"), "--max-connection-age-seconds"),
        (("--host", "0.0.0.0"), "--trusted-network"),  # noqa: S104 - it is refused
        (("--host", "::"), "--trusted-network"),
        (("--host", "8.8.8.8"), "--trusted-network"),
    ],
)
def test_the_native_transport_refuses_by_name_what_it_does_not_do(
    tmp_path: Path, options: Sequence[str], named: str
) -> None:
    result = refused_start(tmp_path, "--transport", "native", *options)
    assert result.returncode == 2
    assert "--transport native" in result.stderr
    assert named in result.stderr


@pytest.fixture
def _without_pygrpc_native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds no ``pygrpc_native``: Python imports a module of this name first of all."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['pygrpc_native'] = None\n", encoding="ascii")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


@pytest.mark.usefixtures("_without_pygrpc_native")
def test_the_native_transport_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    result = refused_start(tmp_path, "--transport", "native")
    assert result.returncode == 2
    assert "pip install 'preheat[native]'" in result.stderr


@pytest.mark.usefixtures("_without_pygrpc_native")
@pytest.mark.parametrize("asked", [("--transport", "grpcio"), ("--transport", "auto", "--trusted-network", "true")])
def test_a_server_without_the_native_transport_serves_on_grpcio(tmp_path: Path, asked: Sequence[str]) -> None:
    models = tmp_path / "models"
    write_model(models, "echo", echo_config())
    with ServerProcess(models, options=asked) as server, Wire(server.grpc_address) as wire:
        assert_echoes(wire)
        assert ("is not installed" in server.log) == ("auto" in asked)


def test_one_port_for_both_is_refused_before_either_is_taken(tmp_path: Path) -> None:
    result = refused_start(tmp_path, "--grpc-port", "45671", "--metrics-port", "45671")
    assert result.returncode == 2
    assert "--metrics-port: 45671: is --grpc-port too" in result.stderr


def test_a_host_that_is_none_is_blamed_and_no_port(tmp_path: Path) -> None:
    result = refused_start(tmp_path, "--host", "nope.invalid")
    assert result.returncode == 1
    assert "--host nope.invalid" in result.stderr
    assert "choose another" not in result.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_log_says_which_transport_serves(tmp_path: Path, transport: str) -> None:
    with ServerProcess(tmp_path, options=("--transport", transport)) as server:
        assert f"gRPC on {server.grpc_address} ({transport})" in server.log
