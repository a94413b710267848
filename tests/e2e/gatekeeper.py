"""The test's side of the gated backend: who has arrived at the gate, and when they may go on."""

import contextlib
import json
import queue
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tests.e2e.server_process import LIMIT_S, echo_config


@dataclass(frozen=True, slots=True)
class Arrival:
    """A load, or an execution of ``rows`` rows, that waits in the server on ``thread`` until it is let go."""

    what: str
    model: str
    instance: int
    thread: int
    rows: int
    release: Callable[[], None] = field(repr=False, compare=False)


class Gatekeeper:
    """Listens for arrivals from ``__enter__`` to ``__exit__``, which must come after the server's.

    The gate is open, for warm-up has to pass, until :meth:`shut`. ``passed`` is who went through an open gate. Any
    thread may call it; ``_shut``, ``_held`` and ``passed`` are guarded by ``_lock``.
    """

    def __init__(self, *, shut: bool = False) -> None:
        self._lock = threading.Lock()
        self._shut = shut
        self._held: list[Arrival] = []
        self._unseen: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.passed: list[Arrival] = []
        self._server = _Listener(("127.0.0.1", 0), _handler(self._arrive))
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, name="gatekeeper")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def config(self, *, max_batch_size: int = 8, extra: str = "dynamic_batching { }") -> str:
        """The configuration of a model behind this gate."""
        parameters = {"port": self.port}
        return echo_config(backend="gated", max_batch_size=max_batch_size, extra=extra, parameters=parameters)

    def shut(self) -> None:
        """From now on who arrives has to wait."""
        with self._lock:
            self._shut = True

    def open(self) -> None:
        """Let go who waits, seen or not, and, from now on, who arrives."""
        with self._lock:
            self._shut = False
            held, self._held = self._held, []
            while not self._unseen.empty():
                self._unseen.get_nowait()
        for arrival in held:
            arrival.release()

    def let_go(self, arrival: Arrival) -> None:
        """Let go one of those who wait; no effect if it has gone."""
        with self._lock:
            if arrival not in self._held:
                return
            self._held.remove(arrival)
        arrival.release()

    def next(self) -> Arrival:
        """Block until someone waits at the gate who has not been seen yet."""
        try:
            return self._unseen.get(timeout=LIMIT_S)
        except queue.Empty:
            raise AssertionError("nobody came to the gate") from None

    def deserted(self) -> bool:
        """Whether nobody waits at the gate unseen."""
        return self._unseen.empty()

    def _arrive(self, arrival: Arrival) -> None:
        with self._lock:
            if self._shut:
                self._held.append(arrival)
                self._unseen.put(arrival)
                return
            self.passed.append(arrival)
        arrival.release()


class _Listener(socketserver.ThreadingTCPServer):
    # A handler reads until its session hangs up; the listener does not wait for it.
    daemon_threads = True


def _handler(arrive: Callable[[Arrival], None]) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                arrive(Arrival(**json.loads(line), release=self._release))

        def _release(self) -> None:
            # Who was killed meanwhile has gone already.
            with contextlib.suppress(OSError):
                self.wfile.write(b"go\n")

    return Handler
