"""``preheat repo check``: every problem of a repository, found without a server."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias

from preheat.errors import BackendMissing, LoadFailed, reason_of
from preheat.models.loader import Loader, LoadLimits
from preheat.plugins import backend_names, load_backend
from preheat.repository.checking import CheckedModel, Problem, check_model, find_folders
from preheat.repository.integrity import check_version
from preheat.repository.scan import ModelFolder

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_CHECK = """\
Look for every problem of repositories, without a server: names, configurations, whether artifacts are whole, and
whether they are what their configurations say, which their backends read them for. Nothing is run of them but what
reading them runs. Exit code 0: nothing found; 1: problems; 2: asked wrongly."""


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
    check.add_argument("-v", "--verbose", action="store_true", help="say on standard error how long each model took")
    check.set_defaults(run=_run_check)


def _run_check(arguments: argparse.Namespace) -> int:
    loader = Loader(load_backend, limits=LoadLimits(1, 1, os.cpu_count() or 1), observer=lambda _: None)
    folders, problems = find_folders(arguments.repositories)
    versions = 0
    for folder in folders:
        began_s = time.monotonic()
        _show_progress(folder.name)
        model = check_model(folder)
        problems += model.problems
        if not arguments.no_artifacts:
            problems += _version_problems(model, loader)
        versions += len(model.versions)
        _show_progress("")
        if arguments.verbose:
            print(f"{folder}: {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    if arguments.strict:
        problems = [replace(each, note=False) for each in problems]
    _print(problems, len({folder.name for folder in folders}), versions, as_json=arguments.json)
    return 0 if all(each.note for each in problems) else 1


def _print(problems: list[Problem], models: int, versions: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(each) for each in problems], indent=2))
        return
    for each in problems:
        print(f"{'note: ' if each.note else ''}{each.problem}")
    print(f"{models} models, {versions} versions: {sum(not each.note for each in problems)} problems")


def _version_problems(model: CheckedModel, loader: Loader) -> Iterator[Problem]:
    for version in model.versions:
        folder = model.folder / str(version)
        try:
            check_version(folder)
            if model.configuration is not None:
                described = ModelFolder(model.folder, model.configuration, model.versions)
                # What a model's code prints is not to be among what was found.
                with redirect_stdout(sys.stderr):
                    loader.describe(described, version)
        except BackendMissing as exc:
            # One that is only not installed here may be where the model is served.
            known = model.configuration is not None and model.configuration.backend in backend_names()
            yield replace(_problem(folder, str(exc)), note=known)
        except LoadFailed as exc:
            yield _problem(folder, str(exc))
        # Whatever a model's code raises, the others are looked at too.
        except Exception as exc:
            yield _problem(folder, f"{folder}: cannot be read: {reason_of(exc)}")


def _problem(folder: Path, text: str) -> Problem:
    """What is wrong with the version in ``folder``; the file is what the text begins with."""
    found = re.match(rf"{re.escape(str(folder.parent))}/[^:\n]*?(?=:| is damaged| cannot be read)", text)
    return Problem(folder.parent.name, int(folder.name), found[0] if found else str(folder), text)


def _show_progress(name: str) -> None:
    """Which model is being looked at, on a terminal: with large artifacts, it takes a while."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{name}")
        sys.stderr.flush()
