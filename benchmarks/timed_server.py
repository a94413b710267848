"""``preheat serve`` with a timer around each stage of a request: for benchmarks.stages, which starts it as a process.

    python -m benchmarks.timed_server FIGURES.json MODEL_REPOSITORY [OPTION ...]

Each stage is a function of the server, wrapped from outside: the server itself has no timers on the request path. What
a stage calls that is a stage too is not counted twice. SIGUSR1 begins anew, and at the end the seconds by stage and the
requests go to the file.
"""

import json
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from preheat.cli import main as preheat
from preheat.models.handle import Handle
from preheat.protocol import codec
from preheat.scheduling.admission import Gate
from preheat.scheduling.execution import Executor
from preheat.scheduling.output_check import OutputCheck
from preheat.scheduling.padding import Padding
from preheat.scheduling.pending import Pending
from preheat.scheduling.queue import RequestQueue
from preheat.transport import choice, grpcio, methods
from preheat_backends.double import DoubleTensorSession

# What is wrapped, and what the stage is called. Of a stage that waits, only what goes on before and after would count:
# so waiting for a batch, or for a call, is none.
_STAGES: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "decode": ((methods, "decode_request"),),
    "admit": ((Gate, "admit"),),
    "queue": ((RequestQueue, "put"), (RequestQueue, "take_now"), (RequestQueue, "_remove")),
    "lease and reply": ((Handle, "submit"), (Pending, "answer")),
    "collate": ((Padding, "collate"),),
    "the model": ((DoubleTensorSession, "infer"),),
    "check outputs": ((OutputCheck, "check"),),
    "split": ((Executor, "_split"),),
    "encode": ((methods, "_encode"),),
    "statistics": ((Executor, "_report"),),
    "the rest of a batch": ((Executor, "execute"),),
}


class StageTimer:
    """Seconds by stage, less those of stages within. Any thread; each adds up its own."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._threads: list[dict[str, float]] = []

    def reset(self) -> None:
        """Begin anew."""
        for seconds in self._threads:
            seconds.clear()

    def total(self) -> dict[str, float]:
        """The seconds of all threads, and under "requests" how often something was decoded."""
        found: dict[str, float] = defaultdict(float)
        for seconds in self._threads:
            for stage, value in list(seconds.items()):
                found[stage] += value
        return found

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Have ``owner.name`` timed as ``stage``."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            seconds, within = self._own()
            within.append(0.0)
            started_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took_s = time.perf_counter() - started_s
                seconds[stage] += took_s - within.pop()
                if within:
                    within[-1] += took_s
                if function is codec.decode_request:
                    seconds["requests"] += 1

        setattr(owner, name, timed)

    def _own(self) -> tuple[dict[str, float], list[float]]:
        """This thread's seconds by stage, and those that its stages under way have spent in others."""
        try:
            own: tuple[dict[str, float], list[float]] = self._local.own
        except AttributeError:
            own = self._local.own = defaultdict(float), []
            self._threads.append(own[0])
        return own


def main() -> int:
    """Serve as the command line says, and leave the figures."""
    figures, *arguments = sys.argv[1:]
    timer = StageTimer()
    for stage, functions in _STAGES.items():
        for owner, name in functions:
            timer.wrap(owner, name, stage)
    timer.wrap(grpcio.GrpcioTransport, "_wake", "the transport, in Python")
    _wrap_native(timer)
    signal.signal(signal.SIGUSR1, lambda *_: timer.reset())
    code = preheat(["serve", *arguments])
    Path(figures).write_text(json.dumps(timer.total()))
    return code


def _wrap_native(timer: StageTimer) -> None:
    """The native transport's share, where that is installed."""
    if choice.NATIVE in sys.argv:
        from preheat.transport.native import NativeTransport

        timer.wrap(NativeTransport, "_take_all", "the transport, in Python")
        timer.wrap(NativeTransport, "_respond", "hand over the answer")


if __name__ == "__main__":
    sys.exit(main())
