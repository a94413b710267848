"""Clients that cost little, driven as processes: perf_analyzer, and h2load for requests that it is too slow for.

perf_analyzer copies a large inline tensor several times for each request, so that it would be measured and not the
server. h2load sends the same framed message again and again.
"""

import csv
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.inputs import INFER
from benchmarks.rounds import Latencies
from tritonclient.grpc import service_pb2

# perf_analyzer reports the mean of so many windows.
_WINDOWS = 3
_STARTING_S = 60.0
_WARM_UP_S = 1
_FINISHED = re.compile(r"finished in \S+, ([0-9.]+) req/s")
_DATA_BYTES = re.compile(r"\((\d+)\) data")


class ClientFailed(Exception):
    """A client that measured nothing; the text is what it said."""


def perf_analyzer(
    program: str, address: str, model: str, *, concurrency: int, window_s: float, extra: Sequence[str] = ()
) -> Latencies:
    """Ask ``model`` with that many requests at a time, each window ``window_s`` long. Raises ClientFailed."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "latencies.csv"
        command = [program, "-m", model, "-i", "grpc", "-u", address, "--sync", "--concurrency-range", str(concurrency)]
        # Whatever the windows differ by, the first three will do: rounds are what tells noise from numbers here.
        command += ["-p", str(round(window_s * 1e3)), "-r", str(_WINDOWS), "-s", "999", "-f", str(table), *extra]
        said = _run(command, window_s * _WINDOWS * 3)
        if not table.exists():
            raise ClientFailed(f"{' '.join(command)}\n{said}")
        with table.open(newline="") as file:
            row = next(csv.DictReader(file))
    return Latencies(float(row["Inferences/Second"]), _ms(row["p50 latency"]), _ms(row["p99 latency"]))


def h2load(program: str, address: str, body: Path, *, concurrency: int, seconds: float) -> Latencies:
    """Send ``body``, as :func:`write_body` writes it, on that many connections. Raises ClientFailed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.tsv"
        command = [program, "-t", "1", "-c", str(concurrency), "-m", "1", "-w", "25", "-W", "28", "-d", str(body)]
        command += ["-D", str(max(1, round(seconds))), "--warm-up-time", str(_WARM_UP_S), "--log-file", str(log)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{INFER}"]
        said = _run(command, seconds * 3)
        taken_us = [int(line.split("\t")[2]) for line in log.read_text().splitlines()] if log.exists() else []
    finished, data = _FINISHED.search(said), _DATA_BYTES.search(said)
    if not taken_us or finished is None or data is None:
        raise ClientFailed(f"{' '.join(command)}\n{said}")
    _check_answered(int(data[1]), len(taken_us) * body.stat().st_size, said)
    p50, p99 = np.percentile(taken_us, [50, 99]) / 1e3
    return Latencies(float(finished[1]), float(p50), float(p99))


def write_body(model: str, elements: int, path: Path) -> None:
    """Write a request of one row of so many random FP32 to an identity model, with gRPC's frame around it."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, elements])
    request.raw_input_contents.append(np.random.default_rng(0).random(elements, np.float32).tobytes())
    encoded = request.SerializeToString()
    path.write_bytes(struct.pack(">BI", 0, len(encoded)) + encoded)


def _check_answered(data_bytes: int, expected_bytes: int, said: str) -> None:
    """An error is an answer of HTTP status 200 too, but not of an identity's size."""
    if data_bytes < 0.9 * expected_bytes:
        raise ClientFailed(f"answers have {data_bytes} bytes where {expected_bytes} were sent: they are errors\n{said}")


def _run(command: Sequence[str], expected_s: float) -> str:
    """What ``command`` printed; raises ClientFailed if it takes far longer than ``expected_s``."""
    try:
        ended = subprocess.run(  # noqa: S603 - the operator names the program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=expected_s + _STARTING_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClientFailed(str(error)) from error
    return ended.stdout


def _ms(microseconds: str) -> float:
    return float(microseconds) / 1e3
