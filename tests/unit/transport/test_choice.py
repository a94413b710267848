"""Which transport is chosen, and what is said of it."""

import asyncio
import importlib.util
import logging
import socket
import tempfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from tests.unit.builders import PlannedBackend, engine_over, loader_of

from preheat.engine import Engine
from preheat.models.registry import Registry
from preheat.settings import InvalidSetting
from preheat.transport.choice import AUTO, GRPCIO, NATIVE, make_transport
from preheat.transport.grpcio import GrpcioTransport
from preheat.transport.listening import Listening, Tls
from preheat.transport.native import NativeTransport

NOT_REACHED_FROM_OUTSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "localhost",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.2",
    "169.254.3.4",
    "fd00::1",
    "fe80::1",
    "::ffff:192.168.1.2",
]
REACHED_FROM_OUTSIDE = [
    "0.0.0.0",  # noqa: S104 - it is not listened on
    "0",
    "::",
    "0:0:0:0:0:0:0:0",
    "8.8.8.8",
    "172.32.0.1",
    "100.64.0.1",
    "2001:4860:4860::8888",
    "a..b",
]
TLS = Tls(Path("certificate.pem"), Path("key.pem"))
# What the native transport cannot do, and the flag that asked for it.
UNABLE: dict[str, tuple[dict[str, Any], str]] = {
    "TLS": ({"tls": TLS}, "--tls-certificate"),
    "compression": ({"compression": "low"}, "--response-compression"),
    "age": ({"max_connection_age_s": 5.0}, "--max-connection-age-seconds"),
}


@pytest.fixture(autouse=True)
def _folders_within_the_tests_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native transport makes one, which it removes when it stops: it is not started here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    def no_model(_: object) -> Any:
        raise AssertionError("nothing is loaded here")

    return engine_over(Registry(observer=lambda _: None), loader_of(PlannedBackend(no_model)), tmp_path)


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pygrpc_native`` is not found, everything else is."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "pygrpc_native" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def choose(
    engine: Engine, wanted: str, *, trusted: bool = False, host: str = "127.0.0.1", **listening: Any
) -> type[object]:
    """The kind of transport that is made."""

    async def make() -> type[object]:
        return type(make_transport(engine, Listening(host=host, port=0, **listening), wanted=wanted, trusted=trusted))

    return asyncio.run(make())


def refusal(engine: Engine, **asked: Any) -> str:
    """What is said to whoever insists on the native transport."""
    with pytest.raises(InvalidSetting) as caught:
        choose(engine, NATIVE, **asked)
    text = str(caught.value)
    assert text.startswith("--transport native: ")
    return text


def resolve_to(*addresses: str) -> Callable[..., list[Any]]:
    """A ``getaddrinfo`` that finds ``addresses`` for whatever name; none of them: that there is no such name."""

    def getaddrinfo(host: str, port: object, *_: object, **__: object) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, f"{host}:{port}: Name or service not known")
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, 0, 0, "", (each, 0)) for each in addresses]

    return getaddrinfo


@pytest.mark.parametrize("host", NOT_REACHED_FROM_OUTSIDE)
def test_the_native_transport_serves_on_addresses_of_this_machine_and_of_private_networks(
    engine: Engine, host: str
) -> None:
    assert choose(engine, NATIVE, host=host) is NativeTransport


@pytest.mark.parametrize("host", REACHED_FROM_OUTSIDE)
def test_the_native_transport_is_refused_where_it_may_be_reached_from_everywhere(engine: Engine, host: str) -> None:
    text = refusal(engine, host=host)
    assert host in text
    assert "--trusted-network true" in text
    assert "--transport grpcio" in text


@pytest.mark.parametrize("host", REACHED_FROM_OUTSIDE)
def test_whoever_asks_for_it_and_trusts_the_network_has_it_everywhere(engine: Engine, host: str) -> None:
    assert choose(engine, NATIVE, trusted=True, host=host) is NativeTransport


@pytest.mark.parametrize("host", ["::ffff:0.0.0.0", "::ffff:8.8.8.8"])
def test_an_ipv4_address_written_as_ipv6_is_judged_as_the_ipv4_address_that_it_is(engine: Engine, host: str) -> None:
    assert host in refusal(engine, host=host)


def test_a_name_with_one_public_address_among_private_ones_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("10.0.0.7", "8.8.8.8"))
    assert "models.example" in refusal(engine, host="models.example")


def test_a_name_of_private_addresses_only_is_served_natively(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("10.0.0.7", "fe80::7%lan"))
    assert choose(engine, NATIVE, host="models.example") is NativeTransport


def test_a_name_that_nobody_knows_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to())
    assert "nowhere.example" in refusal(engine, host="nowhere.example")


@pytest.mark.parametrize("what", UNABLE)
@pytest.mark.parametrize("trusted", [False, True])
def test_the_native_transport_refuses_by_name_what_it_cannot_do(engine: Engine, what: str, trusted: bool) -> None:
    options, flag = UNABLE[what]
    text = refusal(engine, trusted=trusted, **options)
    assert flag in text
    assert "--transport grpcio" in text


@pytest.mark.usefixtures("uninstalled")
def test_the_native_transport_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    engine: Engine,
) -> None:
    assert "pip install 'preheat[native]'" in refusal(engine)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - it is not listened on
def test_grpcio_serves_whatever_the_network_when_it_is_asked_for(engine: Engine, trusted: bool, host: str) -> None:
    assert choose(engine, GRPCIO, trusted=trusted, host=host) is GrpcioTransport


@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize("wanted", [GRPCIO, AUTO])
def test_grpcio_needs_nothing_of_the_other_transport(engine: Engine, wanted: str) -> None:
    assert choose(engine, wanted) is GrpcioTransport


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "8.8.8.8"])
def test_auto_is_grpcio_for_whoever_did_not_say_that_the_network_is_trusted(
    engine: Engine, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "preheat.transport.choice"):
        assert choose(engine, AUTO, host=host) is GrpcioTransport
    # Nothing was fallen back from.
    assert caplog.messages == []


@pytest.mark.parametrize("host", NOT_REACHED_FROM_OUTSIDE)
def test_auto_is_native_on_a_trusted_network(engine: Engine, host: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "preheat.transport.choice"):
        assert choose(engine, AUTO, trusted=True, host=host) is NativeTransport
    assert caplog.messages == []


def falls_back(engine: Engine, caplog: pytest.LogCaptureFixture, **asked: Any) -> str:
    """The one log line that says why auto is not native although the network is trusted."""
    with caplog.at_level(logging.INFO, "preheat.transport.choice"):
        assert choose(engine, AUTO, trusted=True, **asked) is GrpcioTransport
    (line,) = caplog.messages
    assert line.startswith("transport: grpcio, since")
    return line


@pytest.mark.parametrize("what", UNABLE)
def test_auto_falls_back_for_what_the_native_transport_cannot_do_and_says_so(
    engine: Engine, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    options, flag = UNABLE[what]
    assert flag in falls_back(engine, caplog, **options)


@pytest.mark.usefixtures("uninstalled")
def test_auto_falls_back_where_the_native_transport_is_not_installed_and_says_so(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    assert "is not installed" in falls_back(engine, caplog)


@pytest.mark.parametrize("host", REACHED_FROM_OUTSIDE)
def test_auto_falls_back_on_a_public_address_however_trusted_for_it_takes_being_told_twice(
    engine: Engine, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert host in falls_back(engine, caplog, host=host)
