"""From instance threads to an event loop, one wake-up for all answers of a batch."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Runs callbacks on an event loop; those of one thread in order.

    :meth:`post` may be called from any thread; everything else belongs to the loop, on whose thread it is made. Waking
    a loop costs a system call, so callbacks that are posted before it wakes share one, and what is posted on its own
    thread runs at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._letters: deque[Callable[[], None]] = deque()
        # Emptied by whoever takes the duty to wake the loop, refilled by the loop before it reads: deque operations
        # are atomic.
        self._wake_duty: deque[None] = deque([None])

    def post(self, letter: Callable[[], None]) -> None:
        """Have ``letter`` called on the loop soon. Raises RuntimeError if the loop is closed."""
        if threading.get_ident() == self._thread:
            self._read(letter)
            return
        self._letters.append(letter)
        try:
            self._wake_duty.pop()
        except IndexError:
            return
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._wake_duty.append(None)
        while self._letters:
            self._read(self._letters.popleft())

    def _read(self, letter: Callable[[], None]) -> None:
        try:
            letter()
        except Exception as exc:
            self._loop.call_exception_handler({"message": "a letter could not be read", "exception": exc})
