"""A soak: requests of 64 bytes to 1 MiB in a random mix, some cancelled, each answer held against what was sent.

    python -m benchmarks.mixed --soak-seconds 3600

Ids, shapes and how many ask at a time are random too. Memory and latency are sampled as it goes; a leak would show as a
rising line. Fails if an answer is wrong or an error.
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import numpy as np
from benchmarks.cores import resident_mib
from benchmarks.inputs import INFER
from benchmarks.options import EXAMPLES, Options
from benchmarks.plots import Courses
from benchmarks.report import Row, Section, run_alone
from benchmarks.repositories import add_model
from benchmarks.servers import PreheatServer, installed_transports, server_version
from tritonclient.grpc import service_pb2

_MODEL = "identity"
_SMALLEST, _LARGEST = 64, 2**20
_MOST_CALLERS = 32
_MOST_ROWS = 4
_WAVE_S = 1.0
_CANCELLED_SHARE = 0.02
_CANCELLED_WITHIN_S = 0.005
_DEADLINE_S = 60.0
_MOST_FAILURES_TOLD = 10
_SIZES_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@dataclass(slots=True)
class Tally:
    """What came of the requests so far; ``taken_ms`` since the last sample."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)

    def fail(self, kind: str, text: str) -> None:
        """Count what must not be, and keep the first few texts."""
        self.counts[kind] += 1
        if len(self.failures) < _MOST_FAILURES_TOLD:
            self.failures.append(f"{kind}: {text}")


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, encoded, and what its answer must have."""

    encoded: bytes
    id: str
    shape: tuple[int, int]
    payload: bytes


class Mix:
    """Makes requests at random; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - nothing is secret here
        # Payloads are cut from it at random places: making as many bytes anew would be most of the client's work.
        self._pool = self.random.randbytes(2 * _LARGEST)

    def request(self) -> Sent:
        """One more, small ones as likely as large ones by their order of magnitude."""
        rows = self.random.randint(1, _MOST_ROWS)
        size = _SMALLEST * (_LARGEST / _SMALLEST) ** self.random.random()
        columns = max(1, int(size) // 4 // rows)
        start = self.random.randrange(_LARGEST)
        payload = self._pool[start : start + rows * columns * 4]
        request_id = self.random.choice("aé漢") * self.random.randrange(3) + f"{self.random.getrandbits(64):x}"
        request = service_pb2.ModelInferRequest(model_name=_MODEL, id=request_id)
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[rows, columns])
        request.raw_input_contents.append(payload)
        return Sent(request.SerializeToString(), request_id, (rows, columns), payload)


class Soak:
    """The callers. Belongs to one event loop."""

    def __init__(self, channel: grpc.aio.Channel, seed: int = 0) -> None:
        self._infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        self._mix = Mix(seed)
        self.tally = Tally()

    async def run(self, seconds: float) -> None:
        """Wave after wave of callers, of another number each."""
        end_s = time.perf_counter() + seconds
        while (now_s := time.perf_counter()) < end_s:
            wave_end_s = min(end_s, now_s + _WAVE_S)
            callers = self._mix.random.randint(1, _MOST_CALLERS)
            await asyncio.gather(*(self._call_until(wave_end_s) for _ in range(callers)))

    async def _call_until(self, end_s: float) -> None:
        while time.perf_counter() < end_s:
            sent = self._mix.request()
            began_s = time.perf_counter()
            call = self._infer(sent.encoded, timeout=_DEADLINE_S)
            if self._mix.random.random() < _CANCELLED_SHARE:
                await asyncio.sleep(self._mix.random.uniform(0, _CANCELLED_WITHIN_S))
                call.cancel()
            await self._settle(call, sent, began_s)

    async def _settle(self, call: "grpc.aio.UnaryUnaryCall[bytes, bytes]", sent: Sent, began_s: float) -> None:
        try:
            answer = await call
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            self.tally.counts["cancelled"] += 1
        except grpc.aio.AioRpcError as error:
            self.tally.fail("failed", f"{error.code().name}: {error.details()}")
        else:
            self.tally.taken_ms.append((time.perf_counter() - began_s) * 1e3)
            self._check(answer, sent)

    def _check(self, encoded: bytes, sent: Sent) -> None:
        answer = service_pb2.ModelInferResponse.FromString(encoded)
        if answer.id != sent.id:
            self.tally.fail("wrong", f"the answer to {sent.id!r} has the id {answer.id!r}")
        elif [tuple(output.shape) for output in answer.outputs] != [sent.shape]:
            self.tally.fail("wrong", f"the answer to shape {sent.shape} has {answer.outputs}")
        elif list(answer.raw_output_contents) != [sent.payload]:
            self.tally.fail("wrong", f"the answer to {sent.id!r}, shape {sent.shape}, has other bytes")
        else:
            self.tally.counts["right"] += 1


def measure(options: Options) -> Section:
    """Ask a server on each transport, at the same time, for as long as the options say."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = Path(folder)
        add_model(repository, EXAMPLES / _MODEL, _MODEL)
        servers = {
            name: stack.enter_context(PreheatServer(repository, options=["--transport", name]))
            for name in installed_transports()
        }
        found = asyncio.run(_soak_all(servers, options))
        versions = [server_version(server.grpc_address) for server in servers.values()]
    plots = []
    for name, (_, samples) in found.items():
        times_s = [sample["seconds"] for sample in samples]
        courses = {column: [sample[column] for sample in samples] for column in ("RSS MiB", "p99 ms")}
        plots.append(Courses(f"mixed-{name}", f"A soak of mixed sizes, {name}", times_s, courses))
    return Section(
        "Mixed sizes",
        _ABOUT,
        [{"transport": name, **_summary(tally, samples)} for name, (tally, samples) in found.items()],
        plots=plots,
        series=[{"transport": name, **sample} for name, (_, samples) in found.items() for sample in samples],
        versions=versions,
        failures=[f"{name}: {failure}" for name, (tally, _) in found.items() for failure in tally.failures],
    )


async def _soak_all(
    servers: Mapping[str, PreheatServer], options: Options
) -> dict[str, tuple[Tally, list[dict[str, float]]]]:
    soaks = [_soak(server, options) for server in servers.values()]
    return dict(zip(servers, await asyncio.gather(*soaks), strict=True))


async def _soak(server: PreheatServer, options: Options) -> tuple[Tally, list[dict[str, float]]]:
    async with grpc.aio.insecure_channel(server.grpc_address, options=_SIZES_OPTIONS) as channel:
        soak = Soak(channel)
        running = asyncio.create_task(soak.run(options.soak_s))
        samples: list[dict[str, float]] = []
        began_s = time.perf_counter()
        while not running.done():
            await asyncio.wait([running], timeout=options.sample_s)
            samples.append(_sample(soak.tally, server, time.perf_counter() - began_s))
        await running
    return soak.tally, samples


def _sample(tally: Tally, server: PreheatServer, seconds: float) -> dict[str, float]:
    taken_ms, tally.taken_ms = tally.taken_ms, []
    p50, p99 = np.percentile(taken_ms, [50, 99]) if taken_ms else (0.0, 0.0)
    return {
        "seconds": round(seconds, 1),
        "answered": len(taken_ms),
        "p50 ms": round(float(p50), 2),
        "p99 ms": round(float(p99), 2),
        "RSS MiB": round(resident_mib(server.pid), 1),
    }


def _summary(tally: Tally, samples: list[dict[str, float]]) -> Row:
    # The last sample may cover little.
    whole = samples[:-1] or samples
    middle = whole[len(whole) // 2]
    return {
        "seconds": samples[-1]["seconds"],
        **{kind: tally.counts[kind] for kind in ("right", "cancelled", "wrong", "failed")},
        "p99 ms, first sample": whole[0]["p99 ms"],
        "middle": middle["p99 ms"],
        "last": whole[-1]["p99 ms"],
        "RSS MiB, first sample": whole[0]["RSS MiB"],
        "RSS, middle": middle["RSS MiB"],
        "RSS, last": whole[-1]["RSS MiB"],
    }


_ABOUT = f"""\
An identity model on each transport, both at the same time, each asked by 1 to {_MOST_CALLERS} callers, another number
each second, with tensors of 64 bytes to 1 MiB, of 1 to {_MOST_ROWS} rows, small ones as likely as large ones by their
order of magnitude. {_CANCELLED_SHARE:.0%} of the calls are cancelled within {_CANCELLED_WITHIN_S * 1e3:.0f} ms.
Each answer's id, shape and bytes are held against the request's."""


if __name__ == "__main__":
    run_alone(__doc__, measure)
