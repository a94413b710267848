"""The artifacts that take each other's place, and the folder in which they do.

Each answers with vectors of a length of its own, so that an answer says which one gave it; where they point says
whether it is right.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from benchmarks.options import EXAMPLES
from onnx import TensorProto, helper

MODEL = "minilm_onnx"
WIDTH = 384
# By how much the lengths of two artifacts' vectors differ.
STEP = 0.02
# The examples that graphs are made of, by how exact they are.
SOURCES = {"fp32": "minilm_onnx", "int8": "minilm_onnx_int8"}
_GRAPHS = ("fp32", "int8", "fp32", "fp32", "int8", "fp32")
_MODULES = 2
_NORMALIZED = "functional.normalize(mean, dim=1)"
_PIECES = 16
_TENSORS = f"""
input {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }}
input {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
output {{ name: "sentence_embedding" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
"""
_COMMON = {
    "preheat.shape.input_ids": "sequence",
    "preheat.shape.attention_mask": "sequence",
    "preheat.dimension.sequence": "1..512",
}
# Two graphs, as long as the sentences need: what is compiled is to take long, but not for ever.
_COMPILED = {
    "preheat.buckets": "1,4",
    "preheat.buckets.sequence": "16",
    "preheat.pad.input_ids": "0",
    "preheat.pad.attention_mask": "0",
    "preheat.outside_buckets": "eager",
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something to serve: its files by name. ``mark`` is how long its answers are, ``kind`` how exact."""

    mark: float
    kind: str
    backend: str
    files: Mapping[str, Path]

    @property
    def what(self) -> str:
        """Its backend and kind: those that differ in these need another configuration, or are as exact as others."""
        return f"{self.backend} {self.kind}"


@dataclass(frozen=True, slots=True)
class Artifacts:
    """All there are: modules and graphs that are ``good``, and by backend some that are ``bad``, in what way by key."""

    good: Sequence[Artifact]
    bad: Mapping[str, Mapping[str, Artifact]]


def make_artifacts(place: Path, *, compiled: int = 0) -> Artifacts:
    """Write all of them below ``place``, so many modules to be compiled among them."""
    place.mkdir(parents=True)
    good = [module(place, number, "eager") for number in range(_MODULES)]
    good += [_graph(place, kind, 1 + number * STEP) for number, kind in enumerate(_GRAPHS, start=_MODULES)]
    first = _MODULES + len(_GRAPHS)
    good += [module(place, number, "torch_compile") for number in range(first, first + compiled)]
    return Artifacts(good, {"eager": _bad_modules(place), "onnxruntime": _bad_graphs(place)})


def module(place: Path, number: int, backend: str) -> Artifact:
    """The network as Python code, to be served by ``backend``; its mark has that ``number``."""
    mark = 1 + number * STEP
    return _module(place, f"{backend}-{number}", f"{_NORMALIZED} * {mark}", mark, backend)


def _module(place: Path, name: str, answer: str, mark: float, backend: str) -> Artifact:
    source = EXAMPLES / "minilm" / "1"
    code = (source / "model.py").read_text()
    assert code.count(_NORMALIZED) == 1, f"{source} does not end with {_NORMALIZED}"
    path = place / f"{name}.py"
    path.write_text(code.replace(_NORMALIZED, answer))
    return Artifact(mark, "fp32", backend, {"model.py": path, "model.safetensors": source / "model.safetensors"})


def _bad_modules(place: Path) -> Mapping[str, Artifact]:
    whole = module(place, 0, "eager")
    cut = _cut_off(whole.files["model.safetensors"], place / "cut.safetensors")
    narrow = _module(place, "narrow", f"{_NORMALIZED}[:, :-1]", 1.0, "eager")
    return {
        "cut off": Artifact(1.0, "fp32", "eager", {**whole.files, "model.safetensors": cut}),
        "another width": narrow,
    }


def _graph(place: Path, kind: str, mark: float) -> Artifact:
    path = place / f"{mark:.2f}.onnx"
    onnx.save(_scaled(onnx.load(graph_of(kind)), mark), path)
    return Artifact(mark, kind, "onnxruntime", {"model.onnx": path})


def _bad_graphs(place: Path) -> Mapping[str, Artifact]:
    cut = _cut_off(graph_of("fp32"), place / "cut.onnx")
    renamed = onnx.load(graph_of("fp32"))
    _rename_output(renamed, "another_name")
    onnx.save(renamed, place / "renamed.onnx")
    files = {"cut off": cut, "another output": place / "renamed.onnx"}
    return {way: Artifact(1.0, "fp32", "onnxruntime", {"model.onnx": path}) for way, path in files.items()}


def graph_of(kind: str) -> Path:
    """The example's graph of that precision, whose vectors are as long as 1."""
    return EXAMPLES / SOURCES[kind] / "1" / "model.onnx"


def _cut_off(source: Path, target: Path) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    return target


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


def _rename_output(model: onnx.ModelProto, name: str) -> None:
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], [name]))
    model.graph.output[0].name = name


class Folder:
    """The folder of the model, and what is done to it. ``artifact`` is what its newest version is to be."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        self.path = path
        # Room for an older one.
        self.newest = 5
        self.delay_us = 0
        self.instances = 1
        self.threads = 1
        self.artifact = artifact
        path.mkdir(parents=True)
        self.configure()
        self.copy(artifact, self.version)

    @property
    def version(self) -> Path:
        """The folder of the newest version."""
        return self.path / str(self.newest)

    def configure(self) -> None:
        """Write the configuration, as an editor would: beside, and renamed over."""
        backend = self.artifact.backend
        keys = {**_COMMON, "preheat.threads": str(self.threads), **(_COMPILED if backend == "torch_compile" else {})}
        delay = f" max_queue_delay_microseconds: {self.delay_us} " if self.delay_us else " "
        lines = [f'backend: "{backend}"', "max_batch_size: 4", f"dynamic_batching {{{delay}}}"]
        lines += [f"instance_group {{ count: {self.instances} }}", _TENSORS]
        lines += [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in keys.items()]
        (self.path / ".config").write_text("\n".join(lines) + "\n")
        (self.path / ".config").rename(self.path / "config.pbtxt")

    def copy(self, artifact: Artifact, target: Path) -> Path:
        """Copy an artifact's files to ``target``; which."""
        target.mkdir(exist_ok=True)
        for name, source in artifact.files.items():
            shutil.copyfile(source, target / name)
        return target

    def copy_slowly(self, artifact: Artifact, target: Path, *, pause_s: float = 0.0, stop_s: float = 0.0) -> None:
        """In pieces, with a pause after each, and ``stop_s`` after half of the last file."""
        target.mkdir(exist_ok=True)
        *_, last = artifact.files
        for name, source in artifact.files.items():
            _copy_slowly(source, target / name, pause_s=pause_s, stop_s=stop_s if name == last else 0.0)

    def put_in_place(self, artifact: Artifact) -> None:
        """Rename each file of ``artifact`` over that of the newest version."""
        copies = {name: self.path / f".{name}" for name in artifact.files}
        for name, source in artifact.files.items():
            shutil.copyfile(source, copies[name])
        for name, copied in copies.items():
            copied.replace(self.version / name)

    def add(self, artifact: Artifact, *, configure: bool = False) -> None:
        """A new version, with a configuration where ``configure`` or the backend is another."""
        configure, self.artifact = configure or artifact.backend != self.artifact.backend, artifact
        aside = self.copy(artifact, self.path / ".aside")
        self.newest += 1
        # One right after the other: what comes to rest is both.
        if configure:
            self.configure()
        aside.rename(self.version)

    def rename_in(self, artifact: Artifact, number: int) -> Path:
        """A version of that number, without being the newest; its folder."""
        return self.copy(artifact, self.path / ".aside").rename(self.path / str(number))

    def remove_older(self) -> None:
        """Remove all versions but the newest."""
        for path in self.path.iterdir():
            if path.name.isdecimal() and path != self.version:
                shutil.rmtree(path)


def _copy_slowly(source: Path, target: Path, *, pause_s: float, stop_s: float) -> None:
    size = source.stat().st_size
    piece = -(-size // _PIECES)
    with source.open("rb") as read, target.open("wb") as written:
        for number in range(_PIECES):
            written.write(read.read(piece))
            written.flush()
            time.sleep(stop_s if number == _PIECES // 2 - 1 and stop_s else pause_s)
