"""Where and how a transport listens: what the operator decides of it."""

from dataclasses import dataclass
from pathlib import Path

from preheat.protocol.codec import MAX_MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM format. With ``client_authorities``, clients have to show a certificate that one of them signed."""

    certificate: Path
    key: Path
    client_authorities: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """How to listen on ``host:port``; None leaves it to the transport.

    ``keepalive_s``: how long a connection may be silent before it is asked whether it lives, and
    ``keepalive_timeout_s`` how long it has to answer. ``max_concurrent_streams`` is of one connection.
    ``compression`` of answers: none, low, medium or high.
    """

    host: str
    port: int
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_concurrent_streams: int | None = None
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    max_connection_age_s: float | None = None
    compression: str = "none"
    tls: Tls | None = None

    @property
    def address(self) -> str:
        """As gRPC writes it."""
        return address_of(self.host, self.port)


def address_of(host: str, port: int) -> str:
    """``host`` and ``port`` in one, as clients take them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
