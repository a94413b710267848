"""The ``preheat`` command."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from preheat import __version__
from preheat.app import serve
from preheat.cache_command import add_cache_commands
from preheat.errors import BackendMissing, ServingError
from preheat.model_commands import add_model_commands
from preheat.plugins import backend_names, extras_of, load_backend
from preheat.repo_command import add_repo_commands
from preheat.settings import (
    InvalidSetting,
    configure_logging,
    default_of,
    flag_of,
    make_settings,
    option_fields,
    unknown_variables,
    variable_of,
)
from preheat.tables import table

log = logging.getLogger("preheat")

_SERVE = """\
Serve the models in one or more repositories over gRPC (KServe v2 and Triton's protocol).

A repository is a folder of models: MODEL/config.pbtxt and MODEL/VERSION/ARTIFACT. Every model is loaded and warmed
before it is announced; one that fails is reported with its reason while the others serve. SIGTERM stops in order: not
ready, drain, exit 0."""
_BACKENDS = """\
List the backends: the extra that installs what each needs, whether that is here, and the devices it found."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 1 failed, 2 asked wrongly."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except InvalidSetting as exc:
        return _complain(exc, 2)
    except (ServingError, OSError) as exc:
        return _complain(exc, 1)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preheat", description="An inference server for optimized PyTorch models: ready means hot."
    )
    parser.add_argument("--version", action="version", version=f"preheat {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    add_model_commands(commands)
    backends = _add_command(commands, "backends", "list the backends and what they found here", _BACKENDS)
    backends.set_defaults(run=_run_backends)
    add_cache_commands(commands)
    add_repo_commands(commands)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _add_command(commands, "serve", "serve model repositories", _SERVE)
    command.add_argument(
        "repositories", type=Path, nargs="+", metavar="MODEL_REPOSITORY", help="a folder that holds models"
    )
    for each in option_fields():
        text = f"{each.metadata['help']} (default {default_of(each) or 'none'}; {variable_of(each.name)})"
        command.add_argument(flag_of(each.name), dest=each.name, metavar="VALUE", help=text)
    command.set_defaults(run=_run_serve)


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _run_serve(arguments: argparse.Namespace) -> int:
    flags = {each.name: getattr(arguments, each.name) for each in option_fields()}
    settings = make_settings(tuple(arguments.repositories), flags, os.environ)
    configure_logging(settings.log_level)
    for variable in unknown_variables(os.environ):
        log.warning("%s in the environment is no setting of this server, and has no effect", variable)
    finished = uvloop.run(serve(settings))
    if not finished:
        # A thread is still inside a model. Interpreter shutdown would wait for it or tear it apart; everyone is
        # answered.
        logging.shutdown()
        os._exit(0)
    return 0


def _run_backends(_: argparse.Namespace) -> int:
    rows = [("BACKEND", "EXTRA", "LIBRARY", "DEVICES")]
    for name in backend_names():
        extra = ",".join(extras_of(name)) or "-"
        try:
            hardware = load_backend(name).hardware()
        except BackendMissing as exc:
            rows.append((name, extra, "not installed", str(exc)))
        else:
            rows.append((name, extra, hardware.library, ", ".join(hardware.devices)))
    print("\n".join(table(rows)))
    return 0


def _complain(exc: Exception, code: int) -> int:
    print(f"preheat: {exc}", file=sys.stderr)
    return code
