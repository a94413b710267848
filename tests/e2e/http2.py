"""gRPC as it is on the wire: frames of HTTP/2, by which a test says what no client would and sees what clients hide."""

import itertools
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from tests.e2e.server_process import LIMIT_S

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
MAX_CONCURRENT_STREAMS = 3
INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC = "application/grpc"

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INITIAL_WINDOW_SIZE = 4
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_MOST_OF_A_FRAME = 16_384
# What a stream may hold by default, and the connection whatever the settings are.
_WINDOW = 65_535
_LARGEST_WINDOW = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def encoded(self) -> bytes:
        """As it is on the wire."""
        return _frame(self.kind, self.flags, self.stream, self.payload)

    @property
    def ends_stream(self) -> bool:
        """Whether nothing comes after it on its stream."""
        return self.kind == RESET or (self.kind in (DATA, HEADERS) and bool(self.flags & _END_STREAM))


class Cut(Exception):
    """The peer ended the connection."""


class Http2:
    """A connection that sends what it is told to, whatever the peer allows. Belongs to one thread; raises Cut.

    Without ``patient`` the peer may send 64 KiB of answers and no more, until :meth:`read_on`; without ``alive`` it is
    not answered when it asks whether anyone is there.
    """

    def __init__(self, address: str, *, patient: bool = True, alive: bool = True) -> None:
        self._alive = alive
        self._socket = _connect(address)
        self._source = self._socket.makefile("rb")
        self._streams = itertools.count(1, 2)
        self._send(_beginning(_LARGEST_WINDOW if patient else _WINDOW))
        if patient:
            self._grant(0, _LARGEST_WINDOW - _WINDOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._socket.close()

    def settings(self) -> dict[int, int]:
        """What the server says of itself when the connection begins: call it first."""
        kind, payload = next((each.kind, each.payload) for each in self.frames() if not each.flags & _ACK)
        assert kind == SETTINGS, "a server begins with its settings"
        return dict(struct.iter_unpack(">HI", payload))

    def call(
        self,
        body: bytes,
        *,
        path: str = INFER,
        method: str = "POST",
        content_type: str | None = GRPC,
        headers: Mapping[str, str] | None = None,
        ends: bool = True,
    ) -> int:
        """Begin a call with ``body``, which is sent as it is; its stream. ``ends``: nothing more is sent."""
        stream = next(self._streams)
        pseudo = {":method": method, ":scheme": "http", ":path": path, ":authority": "test"}
        content = {} if content_type is None else {"content-type": content_type}
        named = pseudo | content | {"te": "trailers"} | dict(headers or {})
        self._send(_call(stream, named, body, ends=ends))
        return stream

    def read_on(self, stream: int) -> None:
        """Take whatever is still to come on ``stream``."""
        for each in (0, stream):
            self._grant(each, _LARGEST_WINDOW - _WINDOW)

    def answer(self, stream: int) -> bytes:
        """What is sent on ``stream`` until it ends, gRPC's five bytes before each message included."""
        return self.answers([stream])[stream]

    def answers(self, streams: Iterable[int]) -> dict[int, bytes]:
        """As :meth:`answer`, of several streams, in whichever order they are answered."""
        parts: dict[int, list[bytes]] = {stream: [] for stream in streams}
        open_streams = set(parts)
        for frame in self.frames():
            if frame.stream in open_streams and frame.kind == DATA:
                parts[frame.stream].append(frame.payload)
            if frame.ends_stream:
                open_streams.discard(frame.stream)
            if not open_streams:
                break
        return {stream: b"".join(each) for stream, each in parts.items()}

    def frames(self) -> Iterator[Frame]:
        """The frames that come, settings and pings answered, until Cut."""
        while True:
            head = self._read(9)
            frame = Frame(head[3], head[4], int.from_bytes(head[5:]), self._read(int.from_bytes(head[:3])))
            asks = frame.kind == SETTINGS or (frame.kind == PING and self._alive)
            if asks and not frame.flags & _ACK:
                payload = frame.payload if frame.kind == PING else b""
                self._send(_frame(frame.kind, _ACK, 0, payload))
            yield frame

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except ConnectionError as exc:
            raise Cut(str(exc)) from exc

    def _grant(self, stream: int, size: int) -> None:
        self._send(_frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size)))

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except ConnectionError as exc:
            raise Cut(str(exc)) from exc
        if len(data) < size:
            raise Cut("the connection was closed")
        return data


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """``payload`` as gRPC frames a message."""
    return struct.pack(">?I", compressed, len(payload)) + payload


def bytes_of_a_call(body: bytes) -> bytes:
    """All that a client says on a connection that it makes for one call of ModelInfer, which is stream 1."""
    named = {":method": "POST", ":scheme": "http", ":path": INFER, ":authority": "test", "content-type": GRPC}
    return _beginning(_LARGEST_WINDOW) + _call(1, named | {"te": "trailers"}, body, ends=True)


def reply_to(address: str, said: bytes) -> list[Frame]:
    """The frames with which a server answers ``said``, until it ends the connection: it is told that no more comes."""
    received = bytearray()
    with _connect(address) as connection:
        try:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(_WINDOW):
                received += piece
        except TimeoutError:
            raise
        except OSError:
            # It need not hear all of it.
            return list(_frames_in(bytes(received)))
    return list(_frames_in(bytes(received)))


def _frames_in(received: bytes) -> Iterator[Frame]:
    """The frames that are there whole."""
    while len(received) >= 9 and len(received) >= (end := 9 + int.from_bytes(received[:3])):
        yield Frame(received[3], received[4], int.from_bytes(received[5:9]), received[9:end])
        received = received[end:]


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=LIMIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _beginning(window: int) -> bytes:
    return _PREFACE + _frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))


def _call(stream: int, headers: Mapping[str, str], body: bytes, *, ends: bool) -> bytes:
    block = b"".join(_header(name, value) for name, value in headers.items())
    frames = [_frame(HEADERS, _END_HEADERS, stream, block)]
    pieces = [body[at : at + _MOST_OF_A_FRAME] for at in range(0, len(body), _MOST_OF_A_FRAME)] or [b""]
    last = len(pieces) - 1
    frames += [_frame(DATA, ends and at == last, stream, piece) for at, piece in enumerate(pieces)]
    return b"".join(frames)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _header(name: str, value: str) -> bytes:
    """A header that neither side remembers, in letters that are not compressed: each is shorter than 127."""
    return b"\0" + b"".join(bytes((len(text),)) + text.encode("ascii") for text in (name, value))
