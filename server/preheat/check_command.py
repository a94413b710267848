"""``preheat repo check``: every problem of a repository, found without a server."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from preheat.errors import BackendMissing, LoadFailed, reason_of
from preheat.models.loader import Loader, LoadLimits
from preheat.plugins import load_backend
from preheat.repository.checking import config_problems
from preheat.repository.integrity import check_version
from preheat.repository.scan import BrokenModel, ModelFolder, scan
from preheat.repository.stamps import stamp_folder

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_CHECK = """\
Look for every problem of repositories, without a server: names, configurations, whether artifacts are whole, and
whether they are what their configurations say, which their backends read them for. Nothing is run of them but what
reading them runs. Exit code 0: nothing found; 1: problems; 2: asked wrongly."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a model, in words that name file and key. ``note``: it cannot be looked at here, no more."""

    model: str
    version: int | None
    text: str
    note: bool = False


def add_check_command(actions: Commands) -> None:
    """Add ``check``."""
    check = actions.add_parser(
        "check",
        help="look for every problem of repositories, without a server",
        description=_CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("repositories", type=Path, nargs="+", metavar="DIR", help="a folder that holds models")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--no-artifacts", action="store_true", help="look at names and configurations only: quick")
    check.add_argument(
        "--strict", action="store_true", help="what cannot be looked at here, for want of its backend, is a problem too"
    )
    check.set_defaults(run=_run_check)


def _run_check(arguments: argparse.Namespace) -> int:
    found = scan(arguments.repositories)
    problems: list[Problem] = []
    versions = 0
    for name, folder in found.items():
        _show_progress(name)
        problems += _model_problems(name, folder, artifacts=not arguments.no_artifacts)
        stamp = stamp_folder(folder.path)
        versions += len(stamp.versions) if stamp else 0
    _show_progress("")
    if arguments.strict:
        problems = [Problem(each.model, each.version, each.text) for each in problems]
    wrong = [each for each in problems if not each.note]
    if arguments.json:
        print(json.dumps([asdict(each) for each in problems], indent=2))
    else:
        for each in problems:
            print(f"{'note: ' if each.note else ''}{each.text}")
        print(f"{len(found)} models, {versions} versions: {len(wrong)} problems")
    return 1 if wrong else 0


def _model_problems(name: str, folder: ModelFolder | BrokenModel, *, artifacts: bool) -> Iterator[Problem]:
    texts = config_problems(folder.path)
    if isinstance(folder, BrokenModel) and str(folder.reason) not in texts:
        texts.insert(0, str(folder.reason))
    yield from (Problem(name, None, text) for text in texts)
    stamp = stamp_folder(folder.path)
    for version in sorted(stamp.versions if stamp and artifacts else ()):
        try:
            check_version(folder.path / str(version))
        except LoadFailed as exc:
            yield Problem(name, version, str(exc))
            continue
        if isinstance(folder, ModelFolder):
            yield from _artifact_problems(folder, version)


def _artifact_problems(folder: ModelFolder, version: int) -> Iterator[Problem]:
    """What the backend finds when it reads the artifact for what it says of itself."""
    name = folder.configuration.name
    loader = Loader(load_backend, limits=LoadLimits(1, 1, os.cpu_count() or 1), observer=lambda _: None)
    try:
        loader.describe(folder, version)
    except BackendMissing as exc:
        yield Problem(name, version, str(exc), note=True)
    except LoadFailed as exc:
        yield Problem(name, version, str(exc))
    except Exception as exc:
        yield Problem(name, version, f"{folder.path / str(version)}: cannot be read: {reason_of(exc)}")


def _show_progress(name: str) -> None:
    """Which model is being looked at, on a terminal: with large artifacts, it takes a while."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{name}")
        sys.stderr.flush()
