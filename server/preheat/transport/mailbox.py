"""From instance threads to an event loop, one wake-up for all answers of a batch."""

import asyncio
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Runs callbacks on an event loop, in order.

    :meth:`post` may be called from any thread; everything else belongs to the loop. Waking a loop costs a system
    call, so callbacks that are posted before it wakes share one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[Callable[[], None]] = deque()
        # Emptied by whoever takes the duty to wake the loop, refilled by the loop before it reads: deque operations
        # are atomic.
        self._wake_duty: deque[None] = deque([None])

    def post(self, letter: Callable[[], None]) -> None:
        """Have ``letter`` called on the loop soon. Raises RuntimeError if the loop is closed."""
        self._letters.append(letter)
        try:
            self._wake_duty.pop()
        except IndexError:
            return
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._wake_duty.append(None)
        while self._letters:
            letter = self._letters.popleft()
            try:
                letter()
            except Exception as exc:
                self._loop.call_exception_handler({"message": "a letter could not be read", "exception": exc})
