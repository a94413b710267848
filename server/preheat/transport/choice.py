"""Which transport serves: what was asked for, or what the network allows."""

import importlib.util
import ipaddress
import logging
import socket
from typing import NamedTuple, Protocol

from preheat.engine import Engine
from preheat.settings import InvalidSetting
from preheat.transport.grpcio import GrpcioTransport
from preheat.transport.listening import Listening

log = logging.getLogger(__name__)

GRPCIO, NATIVE, AUTO = "grpcio", "native", "auto"


class Transport(Protocol):
    """What serves the engine on an address. Made on the event loop it runs on, and belongs to it.

    ``name`` is for people.
    """

    name: str

    async def start(self) -> int:
        """Bind and serve; the port bound. Raises OSError."""

    @property
    def blocked(self) -> bool:
        """Whether a call that takes its time, say a load, still runs on its thread."""

    def refresh_health(self) -> None:
        """Tell health checks what the engine's readiness is now."""

    async def stop(self, grace_s: float) -> None:
        """Answer what is under way, at most for ``grace_s``; then cut what is left."""


class _Objection(NamedTuple):
    """Why the native transport cannot serve, and what to do about it."""

    problem: str
    remedy: str


def make_transport(engine: Engine, listening: Listening, *, wanted: str, trusted: bool) -> Transport:
    """The transport that ``wanted`` names. ``trusted``: the operator trusts whoever can reach the address.

    Raises InvalidSetting where the native one cannot do what was asked of it.
    """
    if wanted == GRPCIO or (wanted == AUTO and not trusted):
        return GrpcioTransport(engine, listening)
    objection = _objection(listening, told_twice=trusted and wanted == NATIVE)
    if objection is None:
        # Late: it is an extra.
        from preheat.transport.native import NativeTransport

        return NativeTransport(engine, listening)
    if wanted == NATIVE:
        raise InvalidSetting(f"--transport native: {objection.problem}: {objection.remedy}")
    log.info("transport: grpcio, since the native one %s", objection.problem)
    return GrpcioTransport(engine, listening)


def _objection(listening: Listening, *, told_twice: bool) -> _Objection | None:
    """Why the native transport cannot serve on ``listening``; None if it can."""
    if importlib.util.find_spec("pygrpc_native") is None:
        return _Objection("is not installed", "pip install 'preheat[native]'")
    unable = {
        "TLS (--tls-certificate)": listening.tls is not None,
        "compression (--response-compression)": listening.compression != "none",
        "limit on the age of connections (--max-connection-age-seconds)": listening.max_connection_age_s is not None,
    }
    for what, asked in unable.items():
        if asked:
            return _Objection(f"has no {what}", "use --transport grpcio")
    if not told_twice and not _is_private(listening.host):
        return _Objection(
            f"must not be reached from everywhere, as {listening.host} may be, for a hostile peer can end the process",
            "use --transport grpcio; or both --transport native and --trusted-network true, if only those can reach it "
            "whom you trust",
        )
    return None


def _is_private(host: str) -> bool:
    """Whether every address of ``host`` is of this machine or of a private network."""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    # "Any address" counts as private to the library.
    return all(each.is_private and not each.is_unspecified for each in map(_address, found))


def _address(text: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address":
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
