"""What clients notice of artifacts that are dropped in: open loop at half the saturation rate, in ways as they come.

    python -m benchmarks.swaps --output docs/benchmarks/swaps

MiniLM serves while its artifact is replaced in many ways: as a new version, in place, by its configuration, by another
backend or precision, by something that is damaged or half copied, or by deleting it and bringing it back; then by
modules that have to be compiled first. A process of its own asks, on a schedule that does not wait for answers, and
each answer is held against what artifacts answer that could have given it. Between replacements nothing happens for a
while, and each is compared with the quiet before and after it.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
from benchmarks.arrivals import Stream
from benchmarks.cores import CoreMeter, CoreUse
from benchmarks.open_loop import OpenLoop
from benchmarks.options import EXAMPLES
from benchmarks.plots import Courses
from benchmarks.report import Section, write_report
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from benchmarks.swap_answers import Phase, Times, Window, Witness
from benchmarks.swap_artifacts import MODEL, SOURCES, Artifact, Artifacts, Folder, graph_of, make_artifacts, module
from benchmarks.swap_ways import OTHER, SETTLE_S, Way, Ways
from loadtests.description import describe_model
from loadtests.options import LoadOptions
from loadtests.payloads import make_payloads
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from preheat_backends.onnxruntime.library import ort

_ROOT = Path(__file__).parents[1]
_SENTENCES = 4
_OTHER_RATE = 5.0
_WARM_UP_S, _SATURATION_S = 2.0, 5.0
# How long the aftermath of a replacement is still its own.
_AFTER_S = 1.0
_SLOT_S = 2.0
_MOST_TOLD = 5
# Numbers of modules that are in no cache.
_FIRST_COLD = 20
# Of these there are few, so that the quiet beside each has to be longer.
_COLD_QUIET = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for."""

    swaps: int
    cold: int
    compiled: int
    quiet_s: float
    arrivals: str
    seed: int

    @property
    def command(self) -> str:
        """As a page shows it."""
        return (
            f"python -m benchmarks.swaps --swaps {self.swaps} --cold {self.cold} --compiled {self.compiled} "
            f"--quiet {self.quiet_s} --arrivals {self.arrivals} --seed {self.seed}"
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests to the model and to the other one, and what they are answered: at length 1 by kind, and in bytes."""

    main: Sequence[bytes]
    other: Sequence[bytes]
    references: Mapping[str, NDArray[np.float32]]
    echoes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of one phase."""

    phase: Phase
    ways: Ways
    witness: Witness
    rate: float
    cores: CoreUse


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--swaps", type=int, default=50, help="how often something is replaced (default 50)")
    add("--cold", type=int, default=2, help="how often by something that has to be compiled, afterwards (default 2)")
    add("--compiled", type=int, default=0, help="compiled modules among what replaces, with a full cache (default 0)")
    add(
        "--quiet",
        type=float,
        default=3.0,
        help="seconds in which nothing is, before each; 4 times that, cold (default 3)",
    )
    add("--arrivals", choices=("even", "random"), default="even", help="how requests arrive (default even)")
    add("--seed", type=int, default=7, help="of what is chosen at random (default 7)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "swaps", help="the page to write")
    asked = parser.parse_args()
    stop_servers_when_terminated()
    plan = Plan(asked.swaps, asked.cold, asked.compiled, asked.quiet, asked.arrivals, asked.seed)
    sections = measure(plan)
    write_report(sections, asked.output, plan.command)
    for section in sections:
        print(section.markdown)
    raise SystemExit(any(section.failures for section in sections))


def measure(plan: Plan) -> list[Section]:
    """Serve, ask and replace: first what is warm soon, then what has to be compiled."""
    with tempfile.TemporaryDirectory() as place:
        artifacts = make_artifacts(Path(place) / "artifacts", compiled=plan.compiled)
        modules = [
            module(Path(place) / "artifacts", number, "torch_compile")
            for number in range(_FIRST_COLD, _FIRST_COLD + plan.cold)
        ]
        repository = Path(place) / "repository"
        # The slowest: the rate is to be one that each can keep up with.
        folder = Folder(repository / MODEL, artifacts.good[0])
        shutil.copytree(EXAMPLES / OTHER, repository / OTHER)
        options = ["--settle-seconds", str(SETTLE_S), "--cache-dir", str(Path(place) / "cache")]
        with PreheatServer(repository, options=options) as server:
            asked = _make_requests(server.grpc_address)
            _fill_cache(server, folder, artifacts)
            outcomes = {}
            if plan.swaps:
                outcomes["warm"] = _run(server, folder, artifacts, asked, plan)
            if modules:
                _start_anew(server, folder, artifacts.good[0])
                outcomes["cold"] = _run(server, folder, artifacts, asked, plan, modules)
            version = server_version(server.grpc_address)
    return [_section(title, outcome, version) for title, outcome in outcomes.items()]


def _make_requests(address: str) -> Asked:
    with grpc.insecure_channel(address) as channel:
        main, other = (
            [each.encoded for each in make_payloads(describe_model(channel, model, ""), _options(model))[:_SENTENCES]]
            for model in (MODEL, OTHER)
        )
    echoes = [pb.ModelInferRequest.FromString(each).raw_input_contents[0] for each in other]
    return Asked(main, other, _references(main), echoes)


def _options(model: str) -> LoadOptions:
    return LoadOptions(model, "", 1, {}, 1, EXAMPLES / model / "data" / "perf_analyzer.json", 10.0)


def _references(requests: Sequence[bytes]) -> Mapping[str, NDArray[np.float32]]:
    """What artifacts of each kind answer to ``requests``, of one row each, at length 1: by the engine, unserved."""
    rows = [_inputs(request) for request in requests]
    found = {}
    for kind in SOURCES:
        session = ort.InferenceSession(graph_of(kind), providers=["CPUExecutionProvider"])
        answers = np.concatenate([session.run(None, row)[0] for row in rows])
        found[kind] = answers / np.linalg.norm(answers, axis=1, keepdims=True)
    return found


def _inputs(request: bytes) -> dict[str, NDArray[Any]]:
    parsed = pb.ModelInferRequest.FromString(request)
    contents = zip(parsed.inputs, parsed.raw_input_contents, strict=True)
    return {each.name: np.frombuffer(content, np.int64).reshape(each.shape) for each, content in contents}


def _fill_cache(server: PreheatServer, folder: Folder, artifacts: Artifacts) -> None:
    """Serve each module that is compiled, so that it is in the cache; and what there was again."""
    compiled = [each for each in artifacts.good if each.backend == "torch_compile"]
    for artifact in [*compiled, folder.artifact] if compiled else []:
        _serve(server, folder, artifact)


def _start_anew(server: PreheatServer, folder: Folder, first: Artifact) -> None:
    """Serve what was there first, configured as it was: the rate is to be its."""
    folder.delay_us, folder.instances, folder.threads = 0, 1, 1
    _serve(server, folder, first)


def _serve(server: PreheatServer, folder: Folder, artifact: Artifact) -> None:
    # One that was damaged may have failed under the same number.
    so_far = len(server.log)
    folder.add(artifact, configure=True)
    if server.wait_for_log(f"{MODEL}/{folder.newest} (READY|FAILED)", after=so_far)[1] == "FAILED":
        raise RuntimeError(f"not loaded; the log ends with\n{server.log[-3000:]}")
    folder.remove_older()


def _run(
    server: PreheatServer,
    folder: Folder,
    artifacts: Artifacts,
    asked: Asked,
    plan: Plan,
    modules: Sequence[Artifact] = (),
) -> Outcome:
    """Find the rate, then ask and replace: by ``modules``, or if there are none in ways that the dice choose."""
    meter = CoreMeter(server.pid)
    witness = Witness([*artifacts.good, *modules], asked.references, asked.echoes)
    with OpenLoop(server.grpc_address, witness.take) as loop:
        loop.saturation(asked.main, _WARM_UP_S)
        rate = loop.saturation(asked.main, _SATURATION_S) / 2
        _say(f"{rate:.1f} requests a second, half of what saturates it")
        dice = Random(plan.seed)  # noqa: S311 - nothing is secret here
        ways = Ways(server, folder, artifacts, witness=witness, check=loop.check, dice=dice)
        chosen = ways.compile(modules) if modules else ways.choose(plan.swaps)
        quiet_s = plan.quiet_s * (_COLD_QUIET if modules else 1)
        began_s = time.perf_counter()
        streams = [Stream(asked.main, rate), Stream(asked.other, _OTHER_RATE)]
        loop.start(streams, even=plan.arrivals == "even", seed=plan.seed)
        windows = [_replace(number, what, way, quiet_s) for number, (what, way) in enumerate(chosen, start=1)]
        time.sleep(quiet_s)
        ended_s = time.perf_counter()
        loop.stop()
    # The process that asked has ended, and counts as this one's.
    return Outcome(Phase(Times(witness.seen), windows, began_s, ended_s), ways, witness, rate, meter.read())


def _replace(number: int, what: str, way: Way, quiet_s: float) -> Window:
    time.sleep(quiet_s)
    began_s = time.perf_counter()
    did = way()
    settled_s = time.perf_counter()
    time.sleep(_AFTER_S)
    _say(f"{number}: {what}: {did}: {settled_s - began_s:.1f} s")
    return Window(what, began_s, time.perf_counter())


def _section(title: str, outcome: Outcome, version: str) -> Section:
    phase, witness, expected = outcome.phase, outcome.witness, outcome.ways.expected
    failed = [each.failure for each in witness.failures if not expected.explains(each)]
    wrong = [why for each in witness.seen if (why := expected.why_not(each))]
    failures = _told("requests failed", failed) + _told("answers are wrong", wrong) + outcome.ways.problems
    if witness.wrong_others:
        failures.append(f"{witness.wrong_others} answers of the other model are wrong")
    times_s, courses = phase.course(_SLOT_S)
    plot = Courses(title, f"Latency while artifacts are replaced, {title}", times_s, courses)
    notes = [
        f"{len(witness.seen):,} answers at {outcome.rate:.1f} requests a second, half of what saturates what "
        f"serves at first. {len(failed)} requests failed, {len(wrong)} answers are of what could not have given them. "
        f"{_told_errors(witness)} Of the other model, {len(witness.failures) - len(failed)} requests failed while it "
        f"was deleted, as they have to, and {witness.others:,} were answered.",
        f"99 % of the requests were sent within {_lateness_ms(witness):.1f} ms of when they were due. On average the "
        f"server used {outcome.cores.server:.2f} cores, who asked and copied {outcome.cores.client:.2f}, and others, "
        f"among them processes of the server's that compile, {outcome.cores.other:.2f}.",
    ]
    about = _ABOUT_COLD if title == "cold" else _ABOUT
    return Section(title, about, phase.rows(), notes, [plot], phase.series(), [version], failures)


def _told(what: str, texts: Sequence[str]) -> list[str]:
    """How many there are, and what the first of those that differ say."""
    if not texts:
        return []
    differing = list(dict.fromkeys(texts))
    more = ", ..." if len(differing) > _MOST_TOLD else ""
    return [f"{len(texts)} {what}: {', '.join(differing[:_MOST_TOLD])}{more}"]


def _told_errors(witness: Witness) -> str:
    kinds = sorted({each.kind for each in witness.seen if each.kind})
    most = {kind: max(each.error for each in witness.seen if each.kind == kind) for kind in kinds}
    told = " and ".join(f"{most[kind]:.1e} ({kind})" for kind in kinds)
    return f"At length 1, they differ from references by at most {told}."


def _lateness_ms(witness: Witness) -> float:
    return float(np.percentile([(each.sent_s - each.due_s) * 1e3 for each in witness.seen], 99))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_ABOUT = f"""\
MiniLM (eager, onnxruntime, 8 bits in turn), served on the machine that also asks and copies: 65 to 90 MB for each
replacement. Milliseconds are from the moment a request was due. What is done counts from the first change of a file
until it serves, {SETTLE_S:.0f} s of which are `--settle-seconds` where it does not arrive by a rename, and for
{_AFTER_S:.0f} s after that. It is compared with the quiet times before and after it."""
_ABOUT_COLD = """\
As above, with modules that `torch_compile` has to compile first, with nothing of them in the cache, by a process of low
priority. The quiet times beside it are those of eager before it and of the compiled module after it."""


if __name__ == "__main__":
    main()
