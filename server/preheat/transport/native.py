"""The gRPC server on ``pygrpc-native``: HTTP/2 outside the interpreter's lock, for networks that are trusted.

Inference calls come in here, in batches, on a thread of its own. All else (streams, health, reflection, control) the
library passes on to a :class:`GrpcioTransport` behind it, on a socket that nobody else can reach. What the library
cannot do at all, and what to hold against it, is in ``docs/transports.md``.
"""

import asyncio
import logging
import shutil
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from preheat.engine import Engine, Ticket
from preheat.errors import InternalError, MessageTooLarge, ServingError
from preheat.models.handle import Handle
from preheat.transport.grpcio import GrpcioTransport
from preheat.transport.listening import Listening
from preheat.transport.methods import SERVICE, infer
from preheat.transport.status import code_of, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pygrpc_native._native import DetailedEvent

log = logging.getLogger(__name__)

_METHOD = f"/{SERVICE}/ModelInfer"
# As many calls as are taken over at once. Those that came meanwhile come with the next batch.
_MOST_EVENTS = 256
# One receives, and may run a quick model; if that hangs, the other receives.
_RECEIVERS = 2
# How often the other looks whether it has to, and when it does: what runs there is to be done within a millisecond.
_WATCH_SECONDS = 0.05
_STUCK_SECONDS = 0.05
# The library frees what was sent when it is next called, and has to notice that it is to end.
_LOOK_UP_MS = 500
# sun_path of unix(7).
_MOST_SOCKET_BYTES = 107
# How long no call may come, and all be answered, for the server to count as left alone.
_QUIET_SECONDS = 0.1
# 512 MiB a connection at most, with windows of 4 MiB a stream, where the library's 1024 would be 4 GiB.
_STREAMS = 128


class NativeTransport:
    """Serves the engine on ``listening``. Made on the event loop, and belongs to it but for the receiving threads.

    ``_tickets`` has the calls that are not answered, by the library's numbers: the thread that receives one adds it,
    whoever answers takes it out.
    """

    name = "native"

    def __init__(self, engine: Engine, listening: Listening) -> None:
        self._engine = engine
        self._listening = listening
        self._behind = GrpcioTransport(engine, listening)
        self._folder: Path | None = None
        self._tickets: dict[int, Ticket | None] = {}
        # Which of the threads receives; held by the one that runs a model, so that there is another that does not; and
        # since when it has.
        self._receiving = 0
        self._running = threading.Lock()
        self._running_since_s: float | None = None
        self._closed = threading.Event()

    async def start(self) -> int:
        """Bind and serve; the port bound (a free one for port 0). Raises OSError if the address cannot be had."""
        listening = self._listening
        try:
            self._front = NativeGrpcFront(
                listening.address,
                [(_METHOD, False)],
                call_details=True,
                metrics=True,
                max_concurrent_streams=listening.max_concurrent_streams or _STREAMS,
                keepalive_time_ms=round(listening.keepalive_s * 1000),
                keepalive_timeout_ms=round(listening.keepalive_timeout_s * 1000),
            )
        except OSError as exc:
            raise OSError(f"cannot listen on {listening.address}: {exc}; choose another port with --grpc-port") from exc
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="preheat-"))
            socket = self._folder / "grpcio.sock"
            _check_path(socket)
            await self._behind.start(socket)
        except OSError:
            self._front.close()
            self._remove_folder()
            raise
        self._front.set_fallback(str(socket))
        self._front.start()
        self._receivers = [
            threading.Thread(target=self._receive, args=(number,), name=f"native transport {number}", daemon=True)
            for number in range(_RECEIVERS)
        ]
        for receiver in self._receivers:
            receiver.start()
        return self._front.bound_port

    @property
    def blocked(self) -> bool:
        """Whether a call that takes its time, say a load, still runs on its thread."""
        return self._behind.blocked

    def refresh_health(self) -> None:
        """Tell health checks what the engine's readiness is now."""
        self._behind.refresh_health()

    async def stop(self, grace_s: float) -> None:
        """Answer until a moment in which no call runs or comes, at most for ``grace_s``; then cut what is left.

        The library does not say when an answer has left. It counts one when it is all handed to the connection, so
        what counts as a moment of quiet is one in which it has counted an answer for every call.
        """
        deadline_s = time.monotonic() + grace_s
        begun = -1
        while time.monotonic() < deadline_s:
            known, (started, ended) = begun, self._calls()
            begun = started
            if begun == known == ended and not self._tickets:
                break
            await asyncio.sleep(_QUIET_SECONDS)
        await self._behind.stop(max(deadline_s - time.monotonic(), _QUIET_SECONDS))
        self._front.close()
        await asyncio.to_thread(self._join)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self) -> None:
        """Wait for the receiving threads; in vain, if a model hangs that one of them runs."""
        for receiver in self._receivers:
            receiver.join(2 * _LOOK_UP_MS / 1000)

    def _calls(self) -> tuple[int, int]:
        """How many inference calls have come so far, and how many have been answered or are gone."""
        counts = (self._front.metrics() or {})["methods"][_METHOD]
        return counts["started"], sum(ends["count"] for ends in counts["status"].values())

    def _receive(self, number: int) -> None:
        """Take calls over until the library is closed, or wait for the other thread to need that.

        One thread receives as long as it can, for two that take turns are on two processors, and find nothing in their
        caches.
        """
        while not self._closed.is_set():
            if self._receiving == number:
                self._receive_batch()
            elif self._is_stuck():
                log.info("a model runs for longer than it should where calls are received: another thread receives")
                self._receiving = number
            else:
                self._closed.wait(_WATCH_SECONDS)

    def _receive_batch(self) -> None:
        try:
            events = self._front.recv_batch_details(_MOST_EVENTS, timeout_ms=_LOOK_UP_MS)
            if events is None:
                self._closed.set()
            else:
                self._take_all(events)
        except Exception:
            # Nobody would receive any more if this thread ended here; nor is anybody served by a full log.
            log.exception("calls could not be taken over")
            self._closed.wait(_WATCH_SECONDS)

    def _is_stuck(self) -> bool:
        """Whether the thread that receives runs a model, and has for long."""
        since_s = self._running_since_s
        return since_s is not None and time.monotonic() - since_s > _STUCK_SECONDS

    def _take_all(self, events: "Sequence[DetailedEvent]") -> None:
        """Queue all calls before any runs: they may share a batch, and one that is dead already is called off."""
        waiting: set[Handle] = set()
        for kind, call, _, payload, _, details in events:
            if kind != EVENT_CALL:
                self._cancel(call)
                continue
            handle = self._take(call, payload or b"", details[2] if details else None)
            if handle is not None:
                waiting.add(handle)
        if len(waiting) == 1:
            self._run(waiting.pop())
            return
        # Run here, the first would keep the others waiting: for as long as it hangs, if it does.
        for handle in waiting:
            handle.wake()

    def _run(self, handle: Handle) -> None:
        """Run what waits for ``handle`` here, unless the other thread still does: a model may hang."""
        if not self._running.acquire(blocking=False):
            handle.wake()
            return
        try:
            self._running_since_s = time.monotonic()
            handle.run_waiting()
        finally:
            self._running_since_s = None
            self._running.release()

    def _take(self, call: int, payload: bytes, remaining_s: float | None) -> Handle | None:
        """Queue a call; the model version that is to be told of it."""
        respond = partial(self._respond, call)
        if len(payload) > (most := self._listening.max_message_bytes):
            respond(MessageTooLarge(f"the message has {len(payload)} bytes; the server takes {most}"))
            return None
        deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        self._tickets[call] = None
        try:
            ticket = infer(self._engine, payload, deadline_s=deadline_s, respond=respond, wake=False)
        except Exception:
            log.exception("a call could not be taken")
            respond(InternalError())
            return None
        if ticket is None:
            return None
        self._tickets[call] = ticket
        # Answered before it was put there, it would stay.
        if ticket.answered:
            self._tickets.pop(call, None)
        return ticket.handle

    def _respond(self, call: int, response: bytes | ServingError) -> None:
        """Answer, on whatever thread. The library takes no answer to a call that is gone, and says so; no matter."""
        self._tickets.pop(call, None)
        if isinstance(response, ServingError):
            self._front.fail(call, code_of(response, "ModelInfer").value[0], text_of(response))
        else:
            self._front.respond(call, response)

    def _cancel(self, call: int) -> None:
        """The caller has left or its deadline has passed."""
        ticket = self._tickets.pop(call, None)
        if ticket is not None:
            ticket.cancel()


def _check_path(socket: Path) -> None:
    """Raise OSError if a socket cannot have this path."""
    if len(bytes(socket)) > _MOST_SOCKET_BYTES:
        raise OSError(f"{socket} is too long for the path of a socket: set TMPDIR to a shorter folder")
