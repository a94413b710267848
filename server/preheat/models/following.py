"""Having models brought up to date when they have changed, each on its own and several at a time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor


class Follower:
    """Calls ``refresh`` with the names of models, on threads of its own. Any thread may call it.

    A model that is waiting to be refreshed is not put in line again. ``_waiting`` and ``_running`` change under
    ``_lock``.
    """

    def __init__(self, refresh: Callable[[str], None], *, concurrency: int) -> None:
        self._refresh = refresh
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="swap")
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._running: set[Future[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a refresh is going on."""
        with self._lock:
            return any(each.running() for each in self._running)

    def tell(self, names: Sequence[str]) -> None:
        """Have these models refreshed. Returns at once."""
        for name in names:
            with self._lock:
                if name in self._waiting:
                    continue
                self._waiting.add(name)
                call = self._executor.submit(self._run, name)
                self._running.add(call)
            call.add_done_callback(self._forget)

    def close(self) -> None:
        """Begin no more of them; those that go on are not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self, name: str) -> None:
        with self._lock:
            self._waiting.discard(name)
        self._refresh(name)

    def _forget(self, call: "Future[None]") -> None:
        with self._lock:
            self._running.discard(call)
