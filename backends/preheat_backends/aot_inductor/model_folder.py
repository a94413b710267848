"""The model folders that the build tool reads and writes.

A configuration is the server's to read: so `preheat config` reads it, completes it from the artifact, and refuses what
is wrong with it. What that prints has one field a line, which is easily read again.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from preheat.backend import Dimension, ModelSource, Signature, TensorSpec
from preheat.errors import InvalidConfig
from preheat.tensors import DataType

# A message of the configuration: the values of each field, in order; text, or messages in turn.
Message: TypeAlias = dict[str, list[Any]]
_ORIGIN = re.compile(r"# (config\.pbtxt|the artifact|default)$")
_RANGE = re.compile(r"(\d+)\.\.(\d*)(?:/(\d+))?$")
_TAKES = "eager"
# Not the new model's: its name is its folder's, and the others are said anew, or are not needed.
_REPLACED = ("name", "backend", "max_batch_size", "default_model_filename", "version_policy", "model_warmup")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model of the eager backend. ``blocks`` are the fields that its file or its artifact set, as text."""

    source: ModelSource
    signature: Signature
    blocks: Mapping[str, str]


def read_model_folder(path: Path, *, device: str, max_batch_size: int | None) -> ModelFolder:
    """Read the configuration in ``path``, of the newest version. Raises InvalidConfig with what the server has to say.

    ``max_batch_size`` takes the place of that in the configuration.
    """
    blocks = _blocks(_ask_server(path))
    message = _parse(iter("".join(blocks.values()).splitlines()))
    backend = message.get("backend", [_TAKES])[0]
    if backend != _TAKES:
        raise InvalidConfig(f"{path}: backend: {backend!r}: packages are built from models for the backend {_TAKES!r}")
    versions = sorted(int(child.name) for child in path.iterdir() if child.name.isdecimal())
    source = ModelSource(
        message.get("name", [path.resolve().name])[0],
        versions[-1],
        version_path=path / str(versions[-1]),
        config_path=path / "config.pbtxt",
        artifact_name=message.get("default_model_filename", [None])[0],
        device=device,
    )
    signature = _signature(message)
    if max_batch_size is not None:
        if not signature.batches:
            raise InvalidConfig(f"{path}: max_batch_size: 0: its tensors have no batch axis, so --max-batch cannot be")
        signature = replace(signature, max_batch_size=max_batch_size)
    return ModelFolder(source, signature, blocks)


def write_configuration(model: ModelFolder, path: Path, *, name: str, made: str) -> None:
    """Write the configuration of the package that was made of ``model``; ``made`` says how, for whoever reads it."""
    kept = "".join(text for field, text in model.blocks.items() if field not in _REPLACED)
    if model.source.device != "cpu":
        kept = re.sub(r"^instance_group \{\n.*?^\}\n", "", kept, flags=re.MULTILINE | re.DOTALL)
        kept += "instance_group {\n  kind: KIND_GPU\n}\n"
    batching = f"max_batch_size: {model.signature.max_batch_size}\n" if model.signature.batches else ""
    path.write_text(f'# {made}\nname: "{name}"\nbackend: "aot_inductor"\n{batching}{kept}', encoding="utf-8")


def check_configuration(path: Path) -> None:
    """Have the server read the model at ``path``. Raises InvalidConfig for what it does not take."""
    try:
        _ask_server(path)
    except InvalidConfig as exc:
        raise InvalidConfig(f"what was built cannot be served as the other model is configured: {exc}") from exc


def _ask_server(path: Path) -> str:
    command = [sys.executable, "-m", "preheat", "config", str(path)]
    asked = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # noqa: S603 - our own command
    if asked.returncode != 0:
        raise InvalidConfig(asked.stderr.strip() or f"{path}: preheat config failed")
    return asked.stdout


def _blocks(text: str) -> dict[str, str]:
    """The top-level fields of what `preheat config` printed, less those that are defaults."""
    blocks: dict[str, str] = {}
    origin = "default"
    field = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            found = _ORIGIN.match(line.rstrip())
            origin = found[1] if found else "default"
        elif origin != "default":
            if not line.startswith((" ", "}")):
                field = re.split(r"[ :]", line, maxsplit=1)[0]
            blocks[field] = blocks.get(field, "") + line
    return blocks


def _parse(lines: Iterator[str]) -> Message:
    """The fields up to the end of the message that ``lines`` begins within."""
    message: Message = {}
    for line in map(str.strip, lines):
        if line == "}":
            break
        if line.endswith("{"):
            message.setdefault(line[:-1].strip(), []).append(_parse(lines))
        elif line:
            key, _, value = line.partition(": ")
            message.setdefault(key, []).append(_scalar(value))
    return message


def _scalar(text: str) -> object:
    if text.startswith('"'):
        # The bytes of UTF-8, those that are no ASCII as octal escapes.
        return ast.literal_eval(f"b{text}").decode("utf-8")
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _signature(message: Message) -> Signature:
    parameters = {each["key"][0]: each["value"][0]["string_value"][0] for each in message.get("parameters", [])}
    return Signature(
        tuple(_spec(each, parameters) for each in message.get("input", [])),
        tuple(_spec(each, parameters) for each in message.get("output", [])),
        max_batch_size=message.get("max_batch_size", [0])[0],
    )


def _spec(message: Message, parameters: Mapping[str, str]) -> TensorSpec:
    name = message["name"][0]
    written = message["data_type"][0].removeprefix("TYPE_")
    sizes = message.get("dims", [])
    names = [part.strip() for part in parameters.get(f"preheat.shape.{name}", "").split(",")]
    names += ["_"] * (len(sizes) - len(names))
    if "reshape" in message:
        # The names are those of the dims that vary, which are in the same order in both shapes.
        varying = iter([called for size, called in zip(sizes, names, strict=False) if size < 0])
        sizes = message["reshape"][0].get("shape", [])
        names = [next(varying, "_") if size < 0 else "_" for size in sizes]
    return TensorSpec(
        name,
        DataType("BYTES" if written == "STRING" else written),
        tuple(_axis(size, called, parameters) for size, called in zip(sizes, names, strict=False)),
        optional=message.get("optional", ["false"])[0] == "true",
    )


def _axis(size: int, name: str, parameters: Mapping[str, str]) -> Dimension:
    if size >= 0:
        return Dimension.fixed(size)
    if name in ("", "_"):
        return Dimension(minimum=1)
    bounds = _RANGE.match(parameters.get(f"preheat.dimension.{name}", "1..").replace(" ", ""))
    if bounds is None:
        return Dimension(name, minimum=1)
    return Dimension(name, int(bounds[1]), int(bounds[2]) if bounds[2] else None, int(bounds[3] or 1))
