"""The commands about one model's folder: ``config``, ``compile`` and ``explain``. None needs a server."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import text_format

from preheat.cache import open_cache
from preheat.errors import InvalidConfig
from preheat.models.lifecycle import Lifecycle
from preheat.models.loader import Loaded, Loader, LoadLimits
from preheat.models.precompilation import yield_to_others
from preheat.plugins import load_backend
from preheat.repository.completion import CompletedConfiguration
from preheat.repository.scan import BrokenModel, ModelFolder, read_model, versions_on_disk
from preheat.scheduling.row_cost import tell_worthwhile
from preheat.scheduling.warming import WarmupReport, WarmupStep
from preheat.settings import configure_logging, flag_of, make_settings, option_fields, variable_of
from preheat.tables import table

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_CONFIG = """\
Print a model's effective configuration as a config.pbtxt, each field with where its value came from: the file, the
artifact, or a default. Loads nothing, but reads the artifact with the model's backend."""
_COMPILE = """\
Load and warm a model as a server would, so that all that its backend compiles is in the compile cache, and end. A
server with the same cache then loads it warm: for building an image, or ahead of a rollout."""
_EXPLAIN = """\
Load and warm a model as a server would, and print its buckets: what each was compiled to, the seconds that took without
and with the compile cache, the milliseconds of a hot run, and by how much it made the process grow."""
_SHARED_SETTINGS = ("cache_dir", "cache_max_bytes", "log_level")


def add_model_commands(commands: Commands) -> None:
    """Add them to the command line."""
    config = _add(commands, "config", "show a model's effective configuration", _CONFIG)
    config.set_defaults(run=_run_config)
    compiling = _add(commands, "compile", "fill the compile cache with what a model needs", _COMPILE)
    compiling.add_argument(
        "--yield", dest="yields", action="store_true",
        help="run only when no other process wants to, and end when standard input ends",
    )  # fmt: skip
    compiling.set_defaults(run=_run_compile)
    explain = _add(commands, "explain", "show a model's buckets and what each was compiled to", _EXPLAIN)
    explain.set_defaults(run=_run_explain)
    for command in (compiling, explain):
        command.add_argument("--version", type=int, metavar="N", help="which version (default: the newest it serves)")
        for each in option_fields():
            if each.name in _SHARED_SETTINGS:
                text = f"{each.metadata['help']} (default {each.default}; {variable_of(each.name)})"
                command.add_argument(flag_of(each.name), dest=each.name, metavar="VALUE", help=text)


def _add(commands: Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("model", type=Path, metavar="MODEL_DIR", help="the model's folder, such as model_repo/minilm")
    return command


def _run_config(arguments: argparse.Namespace) -> int:
    model = _model(arguments.model)
    loader = Loader(load_backend, limits=_limits(), observer=lambda _: None)
    print(_render(loader.describe(model, model.versions[-1])), end="")
    return 0


def _run_compile(arguments: argparse.Namespace) -> int:
    if arguments.yields:
        yield_to_others(sys.stdin.fileno())
    with _loaded(arguments) as loaded:
        event = loaded.event
    print(
        f"{event.model}/{event.version}: {event.compiled} compiled, {event.cached} of them found in the cache, "
        f"{event.load_s + event.warmup_s:.1f} s"
    )
    return 0


def _run_explain(arguments: argparse.Namespace) -> int:
    with _loaded(arguments) as loaded:
        print("\n".join(_explanation(loaded)))
    return 0


@contextmanager
def _loaded(arguments: argparse.Namespace) -> Iterator[Loaded]:
    """The model that ``arguments`` name, one instance of it on each device, with the cache they name."""
    flags = {name: getattr(arguments, name) for name in _SHARED_SETTINGS}
    settings = make_settings((), flags, os.environ)
    configure_logging(settings.log_level)
    model = _model(arguments.model)
    version = model.versions[-1] if arguments.version is None else arguments.version
    if version not in versions_on_disk(model.path):
        raise InvalidConfig(f"--version: {version}: {model.path} has versions {versions_on_disk(model.path)}")
    cache = open_cache(settings.cache_dir, max_bytes=settings.cache_max_bytes)
    with nullcontext() if cache is None else closing(cache):
        loader = Loader(load_backend, limits=_limits(), observer=lambda _: None, cache=cache, most_instances=1)
        loaded = loader.load(model, Lifecycle(model.configuration.name, version, observer=lambda _: None))
        try:
            yield loaded
        finally:
            loaded.handle.close()


def _limits() -> LoadLimits:
    return LoadLimits(1, 1, os.cpu_count() or 1)


def _model(path: Path) -> ModelFolder:
    folder = path.resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give a model's folder, such as model_repo/minilm")
    model = read_model(folder)
    if isinstance(model, BrokenModel):
        raise model.reason
    return model


def _explanation(loaded: Loaded) -> list[str]:
    event = loaded.event
    report = loaded.reports[0]
    cold_s: Mapping[str, Any] = {step["bucket"]: step["seconds"] for step in loaded.record.get("steps", ())}
    rows: list[tuple[str, ...]] = [("BUCKET", "COMPILED TO", "COLD S", "NOW S", "HOT MS", "GREW MIB")]
    rows += [_row(step, _last(report, step.label), cold_s) for step in report.steps if step.number == 1]
    lines = [f"{event.model}/{event.version}: {event.backend} on {', '.join(event.devices)}", ""]
    lines += table(rows)
    before = f"; {loaded.record['seconds']:.1f} s when it was compiled" if loaded.record else ""
    passes = max((step.number for step in report.steps), default=0)
    lines += ["", f"hot after {event.load_s + event.warmup_s:.1f} s and {passes} passes{before}"]
    lines += tell_worthwhile(report.worthwhile)
    outside = loaded.handle.completed.buckets
    if outside.sizes:
        lines.append(f"a size beyond its buckets: {outside.outside.value}")
    return lines


def _row(step: WarmupStep, hot: WarmupStep, cold_s: Mapping[str, Any]) -> tuple[str, ...]:
    built = [compilation for compilation in step.compilations if not compilation.cached]
    kinds = sorted({compilation.kind.value for compilation in step.compilations})
    source = "" if built or not step.compilations else " (cache)"
    counts = ", ".join(f"{sum(each.kind.value == kind for each in step.compilations)} {kind}" for kind in kinds)
    cold = f"{step.seconds:.2f}" if built else f"{cold_s[step.label]:.2f}" if step.label in cold_s else "-"
    return (
        step.label,
        f"{counts}{source}" or "nothing",
        cold,
        f"{step.seconds:.2f}",
        f"{hot.seconds * 1e3:.2f}",
        f"{step.memory_bytes / 2**20:.1f}",
    )


def _last(report: WarmupReport, label: str) -> WarmupStep:
    """The last pass's run of a bucket: the one that was hot."""
    return next(step for step in reversed(report.steps) if step.label == label)


def _render(completed: CompletedConfiguration) -> str:
    """The configuration as text protobuf, a comment before each field."""
    lines: list[str] = []
    for field, _ in completed.proto.ListFields():
        only = type(completed.proto)()
        only.CopyFrom(completed.proto)
        for other, _ in completed.proto.ListFields():
            if other.name != field.name:
                only.ClearField(other.name)
        lines.append(f"# {completed.origins[field.name]}\n{text_format.MessageToString(only)}")
    named = [axis for spec in completed.signature.inputs for axis in spec.shape if axis.size is None]
    if named:
        lines.append(f"# variable dimensions: {', '.join(sorted({str(axis) for axis in named}))}\n")
    lines += [f"# buckets of {name}: {', '.join(map(str, sizes))}\n" for name, sizes in completed.buckets.sizes.items()]
    return "".join(lines)
