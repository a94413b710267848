"""Whether a server with many models is slower than one that is asked for one of them.

    python -m benchmarks.many --many 50

One server of identity models, 8 callers: by turns all ask the same model, or the models one after another.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grpc.aio
import numpy as np
from benchmarks.inputs import INFER
from benchmarks.options import EXAMPLES, Options
from benchmarks.plots import Bars
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.rounds import Latencies, Summary, interleave, measured
from benchmarks.servers import PreheatServer, server_version
from tritonclient.grpc import service_pb2

_CALLERS = 8
_ELEMENTS = 16


def measure(options: Options) -> Section:
    """Measure one model against many of the same server."""
    names = [f"identity_{number}" for number in range(options.many)]
    several = f"{options.many} models"
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        for name in names:
            add_model(repository, EXAMPLES / "identity", name)
        with PreheatServer(repository, options=options.transport_options) as server:
            found = interleave(
                f"{_CALLERS} at a time",
                {
                    what: partial(measured, server.pid, partial(_ask, server.grpc_address, asked, options))
                    for what, asked in {"one model": names[:1], several: names}.items()
                },
                options.rounds,
            )
            versions = [server_version(server.grpc_address)]
    rows = [_row(name, found) for name in found]
    bars = Bars(
        "many", "One model and many", "requests/s", {name: {"8 callers": each.rps} for name, each in found.items()}
    )
    return Section("Many models", _ABOUT, rows, plots=[bars], versions=versions)


def _row(name: str, found: dict[str, Summary]) -> Row:
    return {"asked": name, **found[name].columns(), "times one model": round(found[name].times(found["one model"]), 3)}


def _ask(address: str, models: Sequence[str], options: Options) -> Latencies:
    return asyncio.run(_closed_loop(address, [_request(model) for model in models], 3 * options.window_s))


async def _closed_loop(address: str, requests: Sequence[bytes], seconds: float) -> Latencies:
    """Callers that wait for their answers, and send ``requests`` in turn between them."""
    turns = itertools.cycle(requests)
    taken_s: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        await infer(requests[0])
        began_s = time.perf_counter()

        async def call() -> None:
            while (sent_s := time.perf_counter()) < began_s + seconds:
                await infer(next(turns))
                taken_s.append(time.perf_counter() - sent_s)

        await asyncio.gather(*(call() for _ in range(_CALLERS)))
        took_s = time.perf_counter() - began_s
    p50, p99 = np.percentile(taken_s, [50, 99]) * 1e3
    return Latencies(len(taken_s) / took_s, float(p50), float(p99))


def _request(model: str) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, _ELEMENTS])
    request.raw_input_contents.append(np.arange(_ELEMENTS, dtype=np.float32).tobytes())
    encoded: bytes = request.SerializeToString()
    return encoded


_ABOUT = f"""\
Tensors of 64 bytes from {_CALLERS} callers of one grpc.aio client, which takes a core of its own: what counts here is
the ratio, not the rate. Requests for different models share no batches, and each model has a thread."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
