"""How much faster a vision transformer gets, rung by rung: fp32, TF32, bf16, compiled, AOTInductor, int8, fp8.

    python -m benchmarks.gpu.ladder --encoder-batches 1 16

Needs a GPU, and nothing else on it. Without one, `--tiny` runs small networks as far as the CPU goes, which tells
whether everything works and nothing of speed. Each rung is a process of its own; what is found is written after each.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.facts import gpu_facts
from benchmarks.gpu.jobs import Found, Job
from benchmarks.gpu.page import Result, network_section, published_section
from benchmarks.gpu.rungs import BY_NAME, RUNGS, Rung, objection
from benchmarks.report import Section, write_report

from preheat.errors import BackendMissing
from preheat_backends.hardware import Device, find_device

_PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "gpu-ladder"
_BLOCK_BATCH, _TINY_BATCH = 16, 2


@dataclass(frozen=True, slots=True)
class Work:
    """A network at a batch size."""

    network: str
    batch: int


def main() -> None:
    """Climb as the command line says. 1 where a rung failed."""
    arguments = _parser().parse_args()
    device = _find(arguments.device)
    if device.capability is None and not arguments.tiny:
        raise SystemExit(f"the networks are for a GPU, and this is {device}; --tiny runs small ones")
    rungs = [BY_NAME[name] for name in arguments.only]
    done: dict[Work, list[Result]] = {}
    for work in _works(arguments):
        done[work] = []
        for number, rung in enumerate(rungs, 1):
            result = Result(rung, _climb(rung, work, device, arguments))
            done[work].append(result)
            print(
                f"{work.network}, batch {work.batch}, {number}/{len(rungs)} {result.line}", file=sys.stderr, flush=True
            )
            write_report(_sections(done, tiny=arguments.tiny), arguments.output, _shown(arguments), gpu_facts(device))
    raise SystemExit(any(result.failed for results in done.values() for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--output",
        type=Path,
        default=_PAGE,
        help="the page to write, without an ending (default docs/benchmarks/gpu-ladder)",
    )
    add("--only", nargs="+", choices=BY_NAME, default=[rung.name for rung in RUNGS], help="which rungs (default all)")
    add(
        "--networks", nargs="+", choices=("block", "encoder"), default=["block", "encoder"], help="which (default both)"
    )
    add(
        "--encoder-batches", nargs="+", type=int, default=[1], metavar="N", help="the encoder's batch sizes (default 1)"
    )
    add("--device", help="cpu or cuda:N (default cuda:0, or cpu where there is none)")
    add("--tiny", action="store_true", help="small networks, to try whether everything works")
    add("--repeats", type=int, default=50, metavar="N", help="how many calls to take the median of (default 50)")
    add("--limit-seconds", type=float, default=3600.0, help="the most that one rung may take (default 3600)")
    return parser


def _find(name: str | None) -> Device:
    if name is not None:
        return find_device(name)
    try:
        return find_device("cuda:0")
    except BackendMissing:
        return find_device("cpu")


def _works(arguments: argparse.Namespace) -> list[Work]:
    block = [Work("block", _TINY_BATCH if arguments.tiny else _BLOCK_BATCH)]
    encoders = [Work("encoder", batch) for batch in arguments.encoder_batches]
    return [work for work in (*block, *encoders) if work.network in arguments.networks]


def _climb(rung: Rung, work: Work, device: Device, arguments: argparse.Namespace) -> Found:
    """Run one rung in a process of its own, unless the device is none for it."""
    why_not = objection(rung, device)
    if why_not is not None:
        return Found(failure=why_not)
    job = Job(rung.name, work.network, work.batch, device.name, arguments.tiny, arguments.repeats)
    command = [sys.executable, "-m", "benchmarks.gpu.climb", json.dumps(asdict(job))]
    return run_apart(command, limit_s=arguments.limit_seconds)


def run_apart(command: Sequence[str], *, limit_s: float) -> Found:
    """What the process of ``command`` found; a failure if it dies, or takes longer, for which it is ended."""
    # A session of its own, which also has the processes that compile for it.
    process = subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Found(failure=f"took more than {limit_s:g} s")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return Found(failure=f"its process ended with {process.returncode}: {last}")
    answer = (output.splitlines() or [""])[-1]
    try:
        return Found(**json.loads(answer))
    except ValueError:
        return Found(failure=f"its process answered {answer!r}")


def _sections(done: dict[Work, list[Result]], *, tiny: bool) -> list[Section]:
    sections = [
        network_section(work.network, work.batch, results, tiny=tiny) for work, results in done.items() if results
    ]
    return [*sections, published_section()]


def _shown(arguments: argparse.Namespace) -> str:
    """The command as the page shows it: what decides the figures."""
    words = ["python -m benchmarks.gpu.ladder --only", *arguments.only, "--networks", *arguments.networks]
    words += ["--encoder-batches", *map(str, arguments.encoder_batches), f"--repeats {arguments.repeats}"]
    return " ".join([*words, "--tiny"] if arguments.tiny else words)


if __name__ == "__main__":
    main()
