"""Every engine and precision there is for a network on this machine's CPU: speed, time to READY, memory, agreement.

    python -m benchmarks.engines --output docs/benchmarks/engines

Each is a server of its own, started without and then with its cache; all of them then run at the same time and are
asked in turn, so that the machine's moods meet all alike. What a server refuses is a row that says why.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError

import numpy as np
import tritonclient.grpc as grpcclient
from benchmarks.cores import CoreMeter, resident_mib
from benchmarks.engine_variants import NETWORKS, ROWS, Inputs, Network, Variant, variants, write_model
from benchmarks.plots import Bars
from benchmarks.report import Cell, Row, Section, write_report
from benchmarks.rounds import MOST_OTHER_CORES
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from numpy.typing import NDArray
from tests.e2e.scrape import scrape
from tritonclient.utils import np_to_triton_dtype

_ROOT = Path(__file__).parents[1]
_REFERENCE, _BASELINE = "eager", "onnxruntime"
# Two of the largest batches: one fills while the other computes, and once that is under way nothing is padded.
_CALLERS, _CALLERS_ROWS = 8, 8
_SLOWEST_ANSWER_S = 120.0
_FEWEST_ANSWERS = 3


@dataclass(slots=True)
class Measured:
    """What is known of a variant so far. ``reason``: why it is not served here. Milliseconds by rows, a list by rounds.

    ``rates`` are rows a second, with several callers.
    """

    variant: Variant
    reason: str = ""
    cold_s: float = 0.0
    warm_s: float = 0.0
    memory_mib: float = 0.0
    cosine: float = 0.0
    server: PreheatServer | None = None
    model: str = ""
    took_ms: dict[int, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="what to serve (default: all)")
    add("--only", nargs="+", metavar="VARIANT", help="words that a variant's name must have one of (default: all)")
    add("--without", nargs="+", metavar="VARIANT", default=[], help="words that it must not have (default: none)")
    add("--rounds", type=int, default=3, help="rounds to take the median of (default 3)")
    add("--seconds", type=float, default=2.0, help="how long one measurement takes (default 2)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "engines", help="the page to write")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    sections = []
    for name in arguments.networks:
        chosen = [each for each in variants(NETWORKS[name]) if _is_chosen(each.name, arguments.only, arguments.without)]
        sections.append(measure(NETWORKS[name], chosen, arguments.rounds, arguments.seconds))
        write_report(sections, arguments.output, _shown_command(arguments))


def _is_chosen(name: str, only: Sequence[str] | None, without: Sequence[str]) -> bool:
    wanted = only is None or any(word in name for word in only)
    return name == _REFERENCE or (wanted and not any(word in name for word in without))


def measure(network: Network, chosen: Sequence[Variant], rounds: int, seconds: float) -> Section:
    """Start the ``chosen`` variants of ``network``, the reference first, and compare them."""
    samples = network.samples()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = [_start(stack, Path(folder), network, variant) for variant in chosen]
        reference = _outputs(found[0], network, samples)
        served = [each for each in found if each.server is not None]
        others = [_round(each, samples, seconds) for _ in range(rounds) for each in served]
        for each in served:
            each.cosine = _least_cosine(reference, _outputs(each, network, samples))
            assert each.server is not None
            each.memory_mib = resident_mib(each.server.pid)
        versions = [server_version(each.server.grpc_address) for each in served[:1] if each.server is not None]
    baseline = next((each for each in found if each.variant.name == _BASELINE and each.rates), None)
    rows = [_row(each, baseline) for each in found]
    notes = [f"{sum(other > MOST_OTHER_CORES for other in others)} of {len(others)} measurements were disturbed."]
    notes += [f"{each.variant.name}: {each.reason}" for each in found if each.reason]
    groups = {each.variant.name: {"rows/s": statistics.median(each.rates)} for each in served}
    bars = Bars(network.name, f"{network.name}: rows a second by engine", "rows/s", groups)
    return Section(network.name, _ABOUT, rows, notes=notes, plots=[bars], versions=versions)


def _start(stack: ExitStack, folder: Path, network: Network, variant: Variant) -> Measured:
    """Write the model, and start a server of it twice: without a cache, and with what the first one left."""
    measured = Measured(variant)
    print(f"{network.name}, {variant.name}: starting", file=sys.stderr, flush=True)
    repository = folder / "models"
    try:
        measured.model = write_model(repository, network, variant).name
    except (CalledProcessError, OSError) as exc:
        told = f"its tool ended with {exc.returncode}" if isinstance(exc, CalledProcessError) else str(exc)
        measured.reason = f"could not be built: {told}"
        return measured
    options = ["--cache-dir", str(folder / f"cache-{measured.model}"), "--model-control-mode", "explicit"]
    options += ["--load-models", measured.model]
    with PreheatServer(repository, options=options) as server:
        measured.reason = _reason(server, measured.model)
        if not measured.reason:
            measured.cold_s = _load_s(server, measured.model)
        server.terminate()
    if not measured.reason:
        measured.server = stack.enter_context(PreheatServer(repository, options=options))
        measured.warm_s = _load_s(measured.server, measured.model)
    return measured


def _reason(server: PreheatServer, model: str) -> str:
    """Why ``model`` is not READY; empty if it is."""
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        if client.is_model_ready(model):
            return ""
        return "; ".join(entry.reason for entry in client.get_model_repository_index().models if entry.name == model)


def _load_s(server: PreheatServer, model: str) -> float:
    return scrape(server).total("nv_model_load_duration_secs", model=model)


def _round(measured: Measured, samples: Inputs, seconds: float) -> float:
    """One round of one variant; how many cores others used meanwhile."""
    assert measured.server is not None
    meter = CoreMeter(measured.server.pid)
    for rows in ROWS:
        took_ms = _time(measured, _requests(samples, rows), seconds)
        measured.took_ms.setdefault(rows, []).append(statistics.median(took_ms))
    measured.rates.append(_rate(measured, _requests(samples, _CALLERS_ROWS), seconds))
    other = meter.read().other
    mark = f", disturbed: others used {other:.2f} cores" if other > MOST_OTHER_CORES else ""
    print(f"{measured.model}: {measured.rates[-1]:.1f} rows/s{mark}", file=sys.stderr, flush=True)
    return other


def _time(measured: Measured, inputs: Sequence[grpcclient.InferInput], seconds: float) -> list[float]:
    """What calls take, in milliseconds, one after another; at least a few of them."""
    took_ms: list[float] = []
    assert measured.server is not None
    with grpcclient.InferenceServerClient(measured.server.grpc_address) as client:
        client.infer(measured.model, inputs)
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s or len(took_ms) < _FEWEST_ANSWERS:
            began_s = time.perf_counter()
            client.infer(measured.model, inputs)
            took_ms.append((time.perf_counter() - began_s) * 1e3)
    return took_ms


def _rate(measured: Measured, inputs: Sequence[grpcclient.InferInput], seconds: float) -> float:
    """Rows a second, of callers that each wait for their answer: until the last one, as batches answer many at once."""
    assert measured.server is not None
    address = measured.server.grpc_address
    lined_up = threading.Barrier(_CALLERS + 1, timeout=_SLOWEST_ANSWER_S)
    ended = threading.Event()

    def call() -> tuple[int, float]:
        """How many answers there were, and when the last one was."""
        answers, answered_s = 0, 0.0
        try:
            with grpcclient.InferenceServerClient(address) as client:
                client.infer(measured.model, inputs)
                lined_up.wait()
                while not ended.is_set() or answers < _FEWEST_ANSWERS:
                    client.infer(measured.model, inputs)
                    answers, answered_s = answers + 1, time.perf_counter()
        finally:
            # No one is to wait for a caller that failed.
            lined_up.abort()
        return answers, answered_s

    with ThreadPoolExecutor(_CALLERS) as pool:
        calls = [pool.submit(call) for _ in range(_CALLERS)]
        with suppress(threading.BrokenBarrierError):
            lined_up.wait()
            began_s = time.perf_counter()
            ended.wait(2 * seconds)
        ended.set()
        # Whom a failed caller kept from lining up is not the reason.
        calls.sort(key=lambda call: isinstance(call.exception(), threading.BrokenBarrierError))
        done = [each.result() for each in calls]
    return sum(answers for answers, _ in done) * _CALLERS_ROWS / (max(last_s for _, last_s in done) - began_s)


def _requests(samples: Inputs, rows: int) -> list[grpcclient.InferInput]:
    """The first ``rows`` samples, begun anew where there are too few."""
    return _encode({name: np.resize(array, (rows, *array.shape[1:])) for name, array in samples.items()})


def _encode(arrays: Mapping[str, NDArray[np.generic]]) -> list[grpcclient.InferInput]:
    inputs = []
    for name, array in arrays.items():
        tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _outputs(measured: Measured, network: Network, samples: Inputs) -> NDArray[np.float64]:
    """The answers to all samples, asked for eight at a time."""
    assert measured.server is not None, f"the reference is not served: {measured.reason}"
    count = len(next(iter(samples.values())))
    with grpcclient.InferenceServerClient(measured.server.grpc_address) as client:
        parts = [
            client.infer(
                measured.model,
                _encode({name: array[start : start + _CALLERS_ROWS] for name, array in samples.items()}),
            ).as_numpy(network.output)
            for start in range(0, count, _CALLERS_ROWS)
        ]
    return np.concatenate(parts).astype(np.float64)


def _least_cosine(reference: NDArray[np.float64], outputs: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(outputs, axis=1)
    return float(np.min(np.sum(reference * outputs, axis=1) / lengths))


def _row(measured: Measured, baseline: Measured | None) -> Row:
    known = bool(measured.rates)
    took: dict[str, Cell] = {
        f"ms at batch {rows}": round(statistics.median(measured.took_ms[rows]), 2) if known else None for rows in ROWS
    }
    return {
        "engine": measured.variant.name,
        "precision": measured.variant.precision,
        **took,
        "rows/s": round(statistics.median(measured.rates), 1) if known else "refused",
        f"times {_BASELINE} fp32": _times(measured, baseline) if known and baseline is not None else None,
        "READY cold s": round(measured.cold_s, 1) if known else None,
        "READY warm s": round(measured.warm_s, 1) if known else None,
        "RSS MiB": round(measured.memory_mib) if known else None,
        "least cosine to fp32": round(measured.cosine, 5) if known else None,
    }


def _times(measured: Measured, baseline: Measured) -> float:
    """The median of the rounds' ratios."""
    pairs = zip(measured.rates, baseline.rates, strict=True)
    return round(statistics.median(mine / theirs for mine, theirs in pairs), 2)


def _shown_command(arguments: argparse.Namespace) -> str:
    only = f" --only {' '.join(arguments.only)}" if arguments.only else ""
    only += f" --without {' '.join(arguments.without)}" if arguments.without else ""
    return (
        f"python -m benchmarks.engines --networks {' '.join(arguments.networks)}{only} "
        f"--rounds {arguments.rounds} --seconds {arguments.seconds}"
    )


_ABOUT = f"""\
Served, as a client on the same machine sees it: milliseconds of one caller's requests by their rows, and rows a second
of {_CALLERS} callers with {_CALLERS_ROWS} rows each. Medians of rounds. READY is from LOADING on, without and with the
compile cache; memory is the whole server's. Agreement is the least cosine of an output to eager's over all samples."""


if __name__ == "__main__":
    main()
