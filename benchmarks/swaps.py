"""What clients notice of artifacts that are dropped in: open loop at half the saturation rate, in ways as they come.

    python -m benchmarks.swaps --output docs/benchmarks/swaps

MiniLM serves while its artifact is replaced in many ways: as a new version, in place, by its configuration, by another
backend, by something that is damaged or half copied, or by deleting it and bringing it back. Each artifact answers with
vectors of a length of its own, so that an answer says which it is of. Requests arrive on a schedule that does not wait
for answers. Between replacements nothing happens for a while, and both kinds of time are compared.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import onnx
from benchmarks.inputs import INFER, first_request
from benchmarks.options import EXAMPLES
from benchmarks.plots import Courses
from benchmarks.report import Row, Section, write_report
from benchmarks.servers import PreheatServer, server_version, stop_servers_when_terminated
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb

_ROOT = Path(__file__).parents[1]
_INDEX = "/inference.GRPCInferenceService/RepositoryIndex"
_MODEL, _OTHER = "minilm_onnx", "identity"
_ARTIFACTS = 8
_STEP = 0.02
_SETTLE_S = 0.5
_PATIENCE_S = 600.0
_CALLERS = 4
_DYNAMIC = "dynamic_batching {{ max_queue_delay_microseconds: {delay} }}"
_COMMON = """
max_batch_size: 4
{batching}
instance_group {{ count: {instances} }}
parameters {{ key: "preheat.dimension.sequence" value {{ string_value: "1..512" }} }}
parameters {{ key: "preheat.threads" value {{ string_value: "1" }} }}
"""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something to serve: its file and backend. ``mark`` is how long its answers are. ``files``: by name."""

    mark: float
    backend: str
    files: dict[str, Path]


@dataclass(slots=True)
class Served:
    """From when an artifact could have answered, and until when; on the clock of ``time.perf_counter``."""

    mark: float
    since_s: float
    until_s: float = float("inf")


@dataclass(slots=True)
class Answers:
    """What came of requests: when each was due and answered, how long its vector was; and why some failed."""

    due_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--swaps", type=int, default=50, help="how often something is replaced (default 50)")
    add("--cold", type=int, default=2, help="how often by something that has to be compiled (default 2)")
    add("--quiet", type=float, default=3.0, help="seconds in which nothing is, before each (default 3)")
    add("--seed", type=int, default=7, help="of what is chosen at random (default 7)")
    add("--output", type=Path, default=_ROOT / "docs" / "benchmarks" / "swaps", help="the page to write")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    section = asyncio.run(measure(arguments.swaps, arguments.cold, arguments.quiet, arguments.seed))
    command = f"python -m benchmarks.swaps {' '.join(sys.argv[1:])}".strip()
    write_report([section], arguments.output, command)
    print(section.markdown)
    raise SystemExit(bool(section.failures))


async def measure(swaps: int, cold: int, quiet_s: float, seed: int) -> Section:
    """Serve, ask, and replace."""
    with tempfile.TemporaryDirectory() as place:
        artifacts = make_artifacts(Path(place) / "artifacts")
        repository = Path(place) / "repository"
        # The slowest: the rate is to be one that each can keep up with.
        folder = Folder(repository / _MODEL, artifacts[-1])
        shutil.copytree(EXAMPLES / _OTHER, repository / _OTHER)
        options = ["--settle-seconds", str(_SETTLE_S), "--cache-dir", str(Path(place) / "cache")]
        with PreheatServer(repository, options=options) as server:
            with grpc.insecure_channel(server.grpc_address) as channel:
                request = first_request(channel, EXAMPLES / _MODEL)
            async with grpc.aio.insecure_channel(server.grpc_address) as channel:
                run = Run(channel, request, folder, artifacts, random.Random(seed))  # noqa: S311 - no secret
                await run.go(swaps, cold, quiet_s)
            return run.section(server_version(server.grpc_address))


def make_artifacts(place: Path) -> list[Artifact]:
    """Graphs in fp32 and 8 bits, each with a length of its own, and the module, whose vectors are as long as 1."""
    place.mkdir(parents=True)
    found = []
    for number in range(1, _ARTIFACTS + 1):
        source = EXAMPLES / ("minilm_onnx_int8" if number % 3 == 0 else _MODEL) / "1" / "model.onnx"
        mark = 1 + number * _STEP
        path = place / f"{number}.onnx"
        onnx.save(_scaled(onnx.load(source), mark), path)
        found.append(Artifact(mark, "onnxruntime", {"model.onnx": path}))
    eager = EXAMPLES / "minilm" / "1"
    found.append(Artifact(1.0, "eager", {name: eager / name for name in ("model.py", "model.safetensors")}))
    return found


def _scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """``model`` with its output times ``factor``."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = f"{output}_unscaled"
    model.graph.initializer.append(helper.make_tensor("length_of_answers", TensorProto.FLOAT, [], [factor]))
    model.graph.node.append(helper.make_node("Mul", [f"{output}_unscaled", "length_of_answers"], [output]))
    return model


class Folder:
    """The folder of the model, and what is done to it."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        self.path = path
        # Room for older ones.
        self.newest = 5
        self.delay = 0
        self.instances = 1
        self.artifact = artifact
        path.mkdir(parents=True)
        self.configure()
        self.copy(artifact, self.version)

    @property
    def version(self) -> Path:
        """The folder of the newest version."""
        return self.path / str(self.newest)

    def configure(self, extra: str = "") -> None:
        """Write the configuration, as an editor would: beside, and renamed over."""
        declared = (EXAMPLES / "minilm" / "config.pbtxt").read_text()
        eager = self.artifact.backend != "onnxruntime"
        tensors = declared[declared.index("input [") : declared.index("dynamic_batching")] if eager else ""
        names = (
            declared[declared.index("# Both") : declared.index('parameters {\n  key: "preheat.dimension')]
            if eager
            else ""
        )
        batching = _DYNAMIC.format(delay=self.delay) if self.delay else "dynamic_batching { }"
        text = f'backend: "{self.artifact.backend}"' + _COMMON.format(batching=batching, instances=self.instances)
        (self.path / ".config").write_text(text + tensors + names + extra)
        (self.path / ".config").rename(self.path / "config.pbtxt")

    def copy(self, artifact: Artifact, target: Path) -> None:
        """Copy an artifact's files; another hand may read them meanwhile."""
        target.mkdir(exist_ok=True)
        for name, source in artifact.files.items():
            shutil.copyfile(source, target / name)


class Run:
    """One run: asks on a schedule, replaces, and keeps what was seen. Belongs to one event loop."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        request: bytes,
        folder: Folder,
        artifacts: Sequence[Artifact],
        choose: random.Random,
    ) -> None:
        self._infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        self._index: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_INDEX)
        self._request = request
        self._folder = folder
        self._artifacts = artifacts
        self._choose = choose
        self._answers = Answers()
        self._served = [Served(folder.artifact.mark, 0.0)]
        # How long the answer was to the request that was due last, of those answered; and when that was due.
        self._latest = 0.0
        self._latest_due_s = 0.0
        # What was done, in words, from when until when.
        self._windows: list[tuple[str, float, float]] = []
        self._rate = 0.0
        self._began_s = 0.0

    async def go(self, swaps: int, cold: int, quiet_s: float) -> None:
        """Find the rate, then ask and replace."""
        await self._saturate(2.0)
        self._rate = await self._saturate(5.0) / 2
        _say(f"{self._rate:.1f} requests a second, half of what saturates it")
        self._began_s = time.perf_counter()
        async with self._asking():
            for number, (what, do) in enumerate(self._choices(swaps, cold), start=1):
                await asyncio.sleep(quiet_s)
                began_s = time.perf_counter()
                await do()
                # What was replaced drains, and is freed.
                await asyncio.sleep(0.5)
                self._windows.append((what, began_s, time.perf_counter()))
                _say(f"{number}: {what}: {self._windows[-1][2] - began_s:.1f} s")
            await asyncio.sleep(quiet_s)

    def _choices(self, swaps: int, cold: int) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "new version": self._new_version,
            "replaced in place": self._replace,
            "copied over in place": self._copy_over,
            "another configuration": self._reconfigure,
            "another number of instances": self._resize,
            "another backend": self._other_backend,
            "damaged artifact": self._damaged,
            "half a copy, then the rest": self._half_copy,
            "deleted and brought back": self._delete,
            "another model deleted and brought back": self._delete_other,
        }
        names = [name for _ in range(-(-swaps // len(ways))) for name in ways]
        self._choose.shuffle(names)
        chosen = [(name, ways[name]) for name in names[:swaps]]
        return [*chosen, *([("compiled", self._compile)] * cold)]

    async def _new_version(self) -> None:
        await self._drop_in(self._other_artifact())

    async def _other_backend(self) -> None:
        backend = "onnxruntime" if self._folder.artifact.backend == "eager" else "eager"
        await self._drop_in(next(each for each in self._artifacts if each.backend == backend and self._differs(each)))

    async def _drop_in(self, artifact: Artifact, extra: str = "") -> None:
        """As a new version: copied beside and renamed in; with its configuration, where the backend is another."""
        folder = self._folder
        aside = folder.path / ".aside"
        await asyncio.to_thread(folder.copy, artifact, aside)
        changes = artifact.backend != folder.artifact.backend or bool(extra)
        folder.artifact = artifact
        self._expect(artifact)
        if changes:
            folder.configure(extra)
        folder.newest += 1
        aside.rename(folder.version)
        await self._until_seen(artifact)
        old = folder.path / str(folder.newest - 1)
        if old.exists():
            shutil.rmtree(old)

    async def _need_graph(self) -> None:
        """What is there is to be a graph, for another one takes its place."""
        if self._folder.artifact.backend != "onnxruntime":
            await self._drop_in(self._same_backend())

    async def _replace(self) -> None:
        await self._need_graph()
        artifact = self._same_backend()
        hidden = self._folder.path / ".file"
        (source,) = artifact.files.values()
        await asyncio.to_thread(shutil.copyfile, source, hidden)
        self._expect(artifact)
        self._folder.artifact = artifact
        hidden.rename(self._folder.version / "model.onnx")
        await self._until_seen(artifact)

    async def _copy_over(self) -> None:
        """Over what is there, in pieces, for some seconds."""
        await self._need_graph()
        artifact = self._same_backend()
        (source,) = artifact.files.values()
        self._expect(artifact)
        self._folder.artifact = artifact
        await _copy_slowly(source, self._folder.version / "model.onnx", pause_s=0.1)
        await self._until_seen(artifact)

    async def _reconfigure(self) -> None:
        self._folder.delay = self._choose.choice([each for each in (0, 100, 200) if each != self._folder.delay])
        await self._until_loaded(self._folder.configure)

    async def _resize(self) -> None:
        self._folder.instances = 3 - self._folder.instances
        self._folder.configure()
        await asyncio.sleep(_SETTLE_S + 2.0)

    async def _damaged(self) -> None:
        """The half of a graph, which is refused, and is removed again."""
        bad = self._folder.path / str(self._folder.newest + 1)
        aside = self._folder.path / ".bad"
        aside.mkdir()
        content = self._artifacts[0].files["model.onnx"].read_bytes()
        (aside / "model.onnx").write_bytes(content[: len(content) // 2])
        aside.rename(bad)
        await self._until_index(str(self._folder.newest + 1), "UNAVAILABLE")
        shutil.rmtree(bad)
        await asyncio.sleep(_SETTLE_S + 0.5)

    async def _half_copy(self) -> None:
        """A new version whose copy stands still for longer than files have to rest."""
        await self._need_graph()
        artifact = self._same_backend()
        folder = self._folder
        target = folder.path / str(folder.newest + 1)
        target.mkdir()
        (source,) = artifact.files.values()
        self._expect(artifact)
        await _copy_slowly(source, target / "model.onnx", pause_s=0.0, stop_s=3 * _SETTLE_S)
        folder.newest += 1
        folder.artifact = artifact
        await self._until_seen(artifact)
        shutil.rmtree(folder.path / str(folder.newest - 1))

    async def _delete(self) -> None:
        """The newest version goes, and the one before serves; then it comes back."""
        await self._need_graph()
        folder = self._folder
        newest, artifact, before = folder.version, folder.artifact, self._same_backend()
        older = folder.path / str(folder.newest - 1)
        await asyncio.to_thread(folder.copy, before, older)
        await asyncio.sleep(_SETTLE_S + 0.5)
        self._expect(before)
        newest.rename(folder.path / ".deleted")
        await self._until_seen(before)
        self._expect(artifact)
        (folder.path / ".deleted").rename(newest)
        await self._until_seen(artifact)
        shutil.rmtree(older)

    async def _delete_other(self) -> None:
        other = self._folder.path.parent / _OTHER
        other.rename(other.with_name(f".{_OTHER}"))
        await self._until_index_lacks(_OTHER)
        other.with_name(f".{_OTHER}").rename(other)
        await self._until_index("1", "READY", model=_OTHER)

    async def _compile(self) -> None:
        """By torch.compile, of which nothing is in the cache; and back."""
        eager = next(each for each in self._artifacts if each.backend == "eager")
        compiled = Artifact(1.0, "torch_compile", eager.files)
        steps = self._choose.randrange(10**6)
        extra = (
            'parameters { key: "preheat.buckets" value { string_value: "1,4" } }\n'
            f'parameters {{ key: "preheat.buckets.sequence" value {{ string_value: "{32 + steps % 7},128" }} }}\n'
            'parameters { key: "preheat.pad.input_ids" value { string_value: "0" } }\n'
            'parameters { key: "preheat.pad.attention_mask" value { string_value: "0" } }\n'
            'parameters { key: "preheat.outside_buckets" value { string_value: "eager" } }\n'
        )
        if not self._differs(compiled):
            await self._drop_in(self._artifacts[0])
        await self._drop_in(compiled, extra)

    def _other_artifact(self) -> Artifact:
        return self._choose.choice([each for each in self._artifacts if self._differs(each)])

    def _same_backend(self) -> Artifact:
        """Another graph; the file is called the same."""
        graphs = [each for each in self._artifacts if each.backend == "onnxruntime" and self._differs(each)]
        return self._choose.choice(graphs)

    def _differs(self, artifact: Artifact) -> bool:
        return artifact.mark != self._folder.artifact.mark

    def _expect(self, artifact: Artifact) -> None:
        """From now on, answers may be of this one too."""
        self._served.append(Served(artifact.mark, time.perf_counter()))

    async def _until_seen(self, artifact: Artifact) -> None:
        """Until it answers; from then on nothing else may."""
        until_s = time.perf_counter() + _PATIENCE_S
        while abs(self._latest - artifact.mark) > _STEP / 4:
            if time.perf_counter() > until_s:
                raise TimeoutError(f"answers are of length {self._latest:.3f}, not {artifact.mark:.3f}")
            await asyncio.sleep(0.02)
        for each in self._served[:-1]:
            # Requests that an earlier one had taken by then are still its own.
            each.until_s = min(each.until_s, time.perf_counter())

    async def _until_loaded(self, change: Callable[[], None]) -> None:
        """Until what ``change`` makes necessary was loaded: it answers as what was there did."""
        change()
        await asyncio.sleep(_SETTLE_S + 2.5)

    async def _rows(self) -> Sequence[pb.RepositoryIndexResponse.ModelIndex]:
        answer = await self._index(pb.RepositoryIndexRequest().SerializeToString(), timeout=_PATIENCE_S)
        return list(pb.RepositoryIndexResponse.FromString(answer).models)

    async def _until_index(self, version: str, state: str, *, model: str = _MODEL) -> None:
        await self._look_until(lambda rows: (model, version, state) in rows)

    async def _until_index_lacks(self, model: str) -> None:
        await self._look_until(lambda rows: model not in {name for name, _, _ in rows})

    async def _look_until(self, holds: Callable[[set[tuple[str, str, str]]], bool]) -> None:
        """Look into the index again and again: the server tells of nothing by itself."""
        while True:
            if holds({(row.name, row.version, row.state) for row in await self._rows()}):
                return
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        asking = asyncio.create_task(self._ask_on_schedule(stop))
        try:
            yield
        finally:
            stop.set()
            await asking

    async def _ask_on_schedule(self, stop: asyncio.Event) -> None:
        asked: set[asyncio.Task[None]] = set()
        began_s, count = time.perf_counter(), 0
        while not stop.is_set():
            due_s = began_s + count / self._rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            call = asyncio.create_task(self._ask(due_s))
            asked.add(call)
            call.add_done_callback(asked.discard)
            count += 1
        await asyncio.gather(*asked)

    async def _ask(self, due_s: float) -> None:
        try:
            answer = pb.ModelInferResponse.FromString(await self._infer(self._request, timeout=_PATIENCE_S))
        except grpc.aio.AioRpcError as exc:
            self._answers.failures.append((due_s, f"{exc.code().name}: {exc.details()}"))
            return
        done_s = time.perf_counter()
        length = float(np.linalg.norm(np.frombuffer(answer.raw_output_contents[0], np.float32)))
        # Of an earlier version, answers may come late.
        if due_s > self._latest_due_s:
            self._latest, self._latest_due_s = length, due_s
        self._answers.due_s.append(due_s)
        self._answers.done_s.append(done_s)
        self._answers.marks.append(length)

    async def _saturate(self, seconds: float) -> float:
        count, end_s = 0, time.perf_counter() + seconds

        async def call() -> None:
            nonlocal count
            while time.perf_counter() < end_s:
                await self._infer(self._request, timeout=_PATIENCE_S)
                count += 1

        await asyncio.gather(*(call() for _ in range(_CALLERS)))
        return count / seconds

    def section(self, version: str) -> Section:
        """What was seen."""
        answers = self._answers
        due_s, done_s = np.array(answers.due_s), np.array(answers.done_s)
        took_ms = (done_s - due_s) * 1e3
        kinds = np.full(len(due_s), "quiet", object)
        for what, began_s, ended_s in self._windows:
            kinds[(due_s >= began_s) & (due_s < ended_s)] = what
            if what == "compiled":
                # Another engine serves, and what is quiet then is another quiet.
                kinds[(kinds == "quiet") & (due_s >= ended_s)] = "quiet, compiled"
        quiet_ms = took_ms[kinds == "quiet"]
        rows = [self._row("quiet", quiet_ms, quiet_ms)]
        warm = (kinds != "quiet") & (kinds != "compiled") & (kinds != "quiet, compiled")
        rows.append(self._row("all while something is replaced", took_ms[warm], quiet_ms))
        rows += [
            self._row(what, took_ms[kinds == what], quiet_ms) for what in sorted({each for each, *_ in self._windows})
        ]
        strangers = self._strangers()
        failures = [f"{len(answers.failures)} requests failed: {answers.failures[0][1]}"] if answers.failures else []
        failures += [f"{strangers} answers were of artifacts that could not have given them"] if strangers else []
        notes = [
            f"{len(due_s):,} requests at {self._rate:.1f} a second, half of what saturates the slowest artifact; "
            f"{len(answers.failures)} failed, {strangers} were answered by what could not have."
        ]
        return Section("swaps", _ABOUT, rows, notes=notes, plots=[self._course(due_s, took_ms)], versions=[version],
                       failures=failures)  # fmt: skip

    def _row(self, what: str, took_ms: "np.ndarray[tuple[int], np.dtype[np.float64]]", quiet_ms: object) -> Row:
        count = sum(name == what for name, *_ in self._windows) or None
        if not len(took_ms):
            return {"while": what, "times": count, "requests": 0, "p50 ms": None, "p99 ms": None, "max ms": None,
                    "p99, of quiet": None}  # fmt: skip
        p50, p99 = np.percentile(took_ms, [50, 99])
        return {
            "while": what,
            "times": count,
            "requests": len(took_ms),
            "p50 ms": round(float(p50), 1),
            "p99 ms": round(float(p99), 1),
            "max ms": round(float(took_ms.max()), 1),
            "p99, of quiet": round(float(p99 / np.percentile(np.asarray(quiet_ms), 99)), 2),
        }

    def _strangers(self) -> int:
        """How many answers are of an artifact that was not there at any time from asking to answering."""
        found = 0
        for due_s, done_s, mark in zip(self._answers.due_s, self._answers.done_s, self._answers.marks, strict=True):
            found += not any(
                abs(each.mark - mark) < _STEP / 4 and each.since_s <= done_s and due_s <= each.until_s
                for each in self._served
            )
        return found

    def _course(self, due_s: "np.ndarray[tuple[int], np.dtype[np.float64]]", took_ms: object) -> Courses:
        """The 50th and 99th percentiles of each two seconds, and when something was replaced."""
        times = np.arange(0, due_s[-1] - self._began_s, 2.0)
        slots = ((due_s - self._began_s) // 2.0).astype(int)
        taken = np.asarray(took_ms)
        percentiles = {50: list[float](), 99: list[float]()}
        for slot in range(len(times)):
            those = taken[slots == slot]
            for percentile, values in percentiles.items():
                values.append(float(np.percentile(those, percentile)) if len(those) else 0.0)
        busy = [
            float(
                any(
                    began - self._began_s <= at + 2 and at <= ended - self._began_s for _, began, ended in self._windows
                )
            )
            for at in times
        ]
        courses = {f"p{percentile} ms": values for percentile, values in percentiles.items()}
        return Courses("course", "Latency while artifacts are replaced", [float(at) for at in times],
                       {**courses, "replacing": busy})  # fmt: skip


async def _copy_slowly(source: Path, target: Path, *, pause_s: float, stop_s: float = 0.0) -> None:
    """In sixteen pieces, with a pause after each; ``stop_s`` after half of them."""
    piece = -(-source.stat().st_size // 16)  # noqa: ASYNC240 - it has to be the same thread that copies
    with source.open("rb") as read, target.open("wb") as written:
        for number in range(16):
            written.write(read.read(piece))
            written.flush()
            await asyncio.sleep(stop_s if number == 7 and stop_s else pause_s)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_ABOUT = """\
MiniLM (eager, onnxruntime, 8 bits in turn), of one thread, served on the machine that also asks and copies: 90 MB for
each replacement. The rate is half of what saturates the slowest of them. Milliseconds are from the moment a request was
due. `compiled` loads a network that has to be compiled first, with nothing in the cache, by a process of low priority;
all others need no compiling."""


if __name__ == "__main__":
    main()
