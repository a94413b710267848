"""What a load does to the latency of what serves: open loop at half the saturation rate, quiet, cold and warm.

    python -m benchmarks.beside model_repo/minilm_onnx model_repo/efficientnet_compiled

The first model serves. The second is loaded and unloaded beside it, first from an empty compile cache and then, several
times, from the filled one, each time after a while without. Requests arrive on a schedule that does not wait for
answers, so that a stall shows in all that queue behind it. Prints a table, and JSON with --json.
"""

import argparse
import asyncio
import json
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import tritonclient.grpc.aio as grpcclient
from benchmarks.inputs import INFER, first_request
from tests.e2e.server_process import ServerProcess

_SLOWEST_START_S = 1800.0
_SATURATION_CALLERS = 4
_NEVER_S = 3600.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds from each request's scheduled arrival to its answer, while something else went on."""

    what: str
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p99_over_quiet: float


class Load:
    """An open loop of requests to one model, at a fixed rate. Belongs to one event loop."""

    def __init__(self, channel: grpc.aio.Channel, request: bytes) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        self._request = request

    async def saturation(self, seconds: float) -> float:
        """Requests per second of a few callers that wait for their answers."""
        count, end_s = 0, time.perf_counter() + seconds

        async def call() -> None:
            nonlocal count
            while time.perf_counter() < end_s:
                await self._ask()
                count += 1

        await asyncio.gather(*(call() for _ in range(_SATURATION_CALLERS)))
        return count / seconds

    async def during(self, rate: float, work: Callable[[], Awaitable[object]]) -> list[float]:
        """The latencies, in milliseconds, of requests that arrive at ``rate`` until ``work`` is done."""
        latencies: list[float] = []

        async def ask(due_s: float) -> None:
            await self._ask()
            latencies.append((time.perf_counter() - due_s) * 1e3)

        working = asyncio.ensure_future(work())
        asked: list[asyncio.Task[None]] = []
        began_s = time.perf_counter()
        while not working.done():
            due_s = began_s + len(asked) / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            asked.append(asyncio.create_task(ask(due_s)))
        await asyncio.gather(*asked)
        await working
        return latencies

    async def _ask(self) -> None:
        await self._call(self._request, timeout=_NEVER_S)


async def measure(serving: Path, newcomer: Path, *, seconds: float, loads: int) -> list[Latencies]:
    """Serve ``serving`` and load ``newcomer`` beside it."""
    with tempfile.TemporaryDirectory() as folder:
        repository, cache = Path(folder) / "repository", Path(folder) / "cache"
        for model in (serving, newcomer):
            shutil.copytree(model, repository / model.name)
        options = ["--model-control-mode", "explicit", "--load-models", serving.name, "--cache-dir", str(cache)]
        with ServerProcess(repository, options=options, limit_s=_SLOWEST_START_S) as server:
            address = server.grpc_address
            with grpc.insecure_channel(address) as channel:
                request = first_request(channel, serving)
            async with (
                grpc.aio.insecure_channel(address) as channel,
                grpcclient.InferenceServerClient(address) as client,
            ):
                return await _measure(
                    Load(channel, request), server, client, newcomer.name, seconds=seconds, loads=loads
                )


async def _measure(
    load: Load,
    server: ServerProcess,
    client: grpcclient.InferenceServerClient,
    newcomer: str,
    *,
    seconds: float,
    loads: int,
) -> list[Latencies]:
    async def come() -> None:
        await client.load_model(newcomer, client_timeout=_NEVER_S)

    async def go() -> None:
        so_far = len(server.log)
        await client.unload_model(newcomer)
        # That is answered before memory is given back, which is to be no part of the quiet that follows.
        await asyncio.to_thread(server.wait_for_log, f"{re.escape(newcomer)}/\\d+ freed", after=so_far)

    await load.saturation(seconds / 4)
    rate = await load.saturation(seconds / 4) / 2
    rows: list[Latencies] = []
    for kind, times in (("cold", 1), ("warm", loads)):
        quiet, busy = _Watched(load, rate), _Watched(load, rate)
        # In turn: what else the machine has to do comes and goes within seconds, and is to meet both alike.
        for _ in range(times):
            await quiet.during(partial(asyncio.sleep, seconds / times))
            await busy.during(come)
            await go()
        rows += [quiet.told(f"before {kind}", quiet), busy.told(f"{kind} load", quiet)]
    return rows


class _Watched:
    """What requests took while one thing went on, several times. Belongs to the event loop of ``load``."""

    def __init__(self, load: Load, rate: float) -> None:
        self._load, self._rate = load, rate
        self._latencies: list[float] = []
        self._seconds = 0.0

    async def during(self, work: Callable[[], Awaitable[object]]) -> None:
        """Ask until ``work`` is done."""
        began_s = time.perf_counter()
        self._latencies += await self._load.during(self._rate, work)
        self._seconds += time.perf_counter() - began_s

    def told(self, what: str, quiet: "_Watched") -> Latencies:
        """The row of a table, compared with ``quiet``."""
        p50, p99 = np.percentile(self._latencies, [50, 99])
        ratio = p99 / np.percentile(quiet._latencies, 99)
        count, took_s = len(self._latencies), round(self._seconds, 1)
        return Latencies(what, count, took_s, round(p50, 2), round(p99, 2), round(ratio, 2))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("serving", type=Path, metavar="SERVING_MODEL_DIR")
    parser.add_argument("newcomer", type=Path, metavar="NEW_MODEL_DIR")
    parser.add_argument(
        "--seconds",
        type=float,
        default=40.0,
        help="how long to measure without a load, before cold and in all before warm loads (default 40)",
    )
    parser.add_argument("--loads", type=int, default=8, help="loads with a filled cache (default 8)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = asyncio.run(
        measure(
            arguments.serving.resolve(), arguments.newcomer.resolve(), seconds=arguments.seconds, loads=arguments.loads
        )
    )
    if arguments.json:
        print(json.dumps([asdict(each) for each in rows]))
        return
    print(f"{'WHAT':12} {'REQUESTS':>8} {'SECONDS':>8} {'P50 MS':>8} {'P99 MS':>8} {'OF QUIET':>8}")
    for each in rows:
        print(
            f"{each.what:12} {each.requests:8} {each.seconds:8.1f} {each.p50_ms:8.2f} {each.p99_ms:8.2f} "
            f"{each.p99_over_quiet:8.2f}"
        )


if __name__ == "__main__":
    main()
