"""``preheat repo``: what a server's repository holds and serves, and changing it."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from preheat.check_command import add_check_command
from preheat.pushing import Progress, push_into, version_files
from preheat.settings import InvalidSetting
from preheat.tables import table
from preheat.transport.repository_client import Identity, RepositoryClient

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DEFAULT_SERVER = "127.0.0.1:8001"
# Loading, with warm-up and a canary, may take minutes.
_DEFAULT_TIMEOUT_S = 3600.0
_HEADER = (
    "MODEL", "VERSION", "STATE", "BACKEND", "BUCKETS", "WARM-UP S", "MIB", "REQUESTS", "FAILED", "PER S", "REASON",
)  # fmt: skip
_REPO = """\
See and change what a server serves. Each asks a running server; push --repository and check need none."""
_PUSH = """\
Put a new version of a model into a repository: a file, or a folder with all that belongs to the version. It is copied
beside the models, checked, and renamed in: whoever looks sees all of it or nothing. A server that watches its
repository then serves it, and says so. It takes models only with --allow-model-upload true: whoever may push may run
code there."""
_ROLLBACK = """\
Serve what was served before: at once if that is still in memory, else it is loaded. The newer version is put aside in
the repository, so that the next start serves the same."""


def add_repo_commands(commands: Commands) -> None:
    """Add ``repo list``, ``push``, ``load``, ``unload``, ``rollback`` and ``check``."""
    repo = commands.add_parser("repo", help="see and change what a server serves", description=_REPO)
    actions = repo.add_subparsers(required=True, metavar="ACTION")
    listing = _add(actions, "list", _run_list, "list every version: state, buckets, memory, rate, and why it is so")
    listing.add_argument("--json", action="store_true", help="print JSON, with seconds and bytes")
    listing.add_argument(
        "--seconds",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="count requests for so long (default 1; 0: not at all)",
    )
    pushing = _add(actions, "push", _run_push, "put a new version of a model into a repository", _PUSH)
    _add_model(pushing)
    pushing.add_argument("artifact", type=Path, metavar="ARTIFACT", help="a file, or a folder with the version's files")
    pushing.add_argument(
        "--version", type=_version, default=0, metavar="N", help="which it is to be (default: the next)"
    )
    pushing.add_argument("--config", type=Path, metavar="FILE", help="a config.pbtxt, to take the place of the model's")
    pushing.add_argument(
        "--repository", type=Path, metavar="DIR", help="put it into this folder of models, by no server"
    )
    for name, run, text in (
        ("load", _run_load, "load a model as it is in the repository"),
        ("unload", _run_unload, "serve a model no more, until its files change"),
    ):
        _add_model(_add(actions, name, run, text))
    _add_model(_add(actions, "rollback", _run_rollback, "serve what was served before", _ROLLBACK))
    add_check_command(actions)


def _add(
    actions: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str = ""
) -> argparse.ArgumentParser:
    command = actions.add_parser(
        name, help=summary, description=description or summary, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--server", metavar="HOST:PORT", help=f"the server (default {_DEFAULT_SERVER})")
    command.add_argument(
        "--timeout", type=_seconds, metavar="S", help=f"how long to wait for it (default {_DEFAULT_TIMEOUT_S:.0f})"
    )
    command.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="use TLS; the server's certificate is signed by this"
    )
    command.add_argument("--tls-certificate", type=Path, metavar="FILE", help="use TLS, and show this certificate")
    command.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of --tls-certificate")
    command.set_defaults(run=run)
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="the model's name")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be seconds, from 0")
    return value


def _version(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def _client(arguments: argparse.Namespace) -> RepositoryClient:
    """Raises InvalidSetting for half a certificate."""
    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        raise InvalidSetting("--tls-certificate and --tls-key: the one needs the other")
    identity = None
    if arguments.tls_ca or arguments.tls_certificate:
        identity = Identity(arguments.tls_ca, arguments.tls_certificate, arguments.tls_key)
    timeout_s = _DEFAULT_TIMEOUT_S if arguments.timeout is None else arguments.timeout
    return RepositoryClient(arguments.server or _DEFAULT_SERVER, timeout_s=timeout_s, identity=identity)


def _run_load(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        client.load(arguments.model)
    print(f"{arguments.model} is loaded")
    return 0


def _run_unload(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        client.unload(arguments.model)
    print(f"{arguments.model} is served no more")
    return 0


def _run_rollback(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        print(client.roll_back(arguments.model))
    return 0


def _run_list(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        before = (
            {(each.model, each.version): each.requests for each in client.list_versions()} if arguments.seconds else {}
        )
        began_s = time.monotonic()
        time.sleep(arguments.seconds)
        versions = client.list_versions()
        passed_s = time.monotonic() - began_s
    rates = {
        (each.model, each.version): (each.requests - before[each.model, each.version]) / passed_s
        for each in versions
        if (each.model, each.version) in before
    }
    if arguments.json:
        print(json.dumps([_as_json(each, rates.get((each.model, each.version))) for each in versions], indent=2))
        return 0
    rows = [_HEADER, *(_as_row(each, rates.get((each.model, each.version))) for each in versions)]
    print("\n".join(table(rows)))
    return 0


def _as_json(version: Any, rate: float | None) -> Mapping[str, object]:
    return {
        "model": version.model,
        "version": version.version or None,
        "state": version.state or None,
        "reason": version.reason,
        "note": version.note,
        "backend": version.backend or None,
        "buckets": version.buckets,
        "load_seconds": version.load_seconds if version.HasField("load_seconds") else None,
        "warmup_seconds": version.warmup_seconds if version.HasField("warmup_seconds") else None,
        "memory_bytes": version.memory_bytes if version.HasField("memory_bytes") else None,
        "requests": version.requests,
        "failures": version.failures,
        "requests_per_second": rate,
    }


def _as_row(version: Any, rate: float | None) -> Sequence[str]:
    return (
        version.model,
        str(version.version or "-"),
        version.state or "not loaded",
        version.backend or "-",
        version.buckets or "-",
        f"{version.warmup_seconds:.2f}" if version.HasField("warmup_seconds") else "-",
        f"{version.memory_bytes / 2**20:.0f}" if version.HasField("memory_bytes") else "-",
        str(version.requests),
        str(version.failures),
        "-" if rate is None else f"{rate:.1f}",
        version.reason or version.note,
    )


def _run_push(arguments: argparse.Namespace) -> int:
    files = version_files(arguments.artifact)
    config = None if arguments.config is None else arguments.config.read_text(encoding="utf-8")
    progress = Progress(sum(path.stat().st_size for path in files.values()))
    if arguments.repository is not None:
        return _push_locally(arguments, files, config, progress)
    with _client(arguments) as client:
        text = client.push(arguments.model, files, version=arguments.version, config=config, progress=progress.show)
    progress.end()
    print(text)
    return 0


def _push_locally(
    arguments: argparse.Namespace, files: Mapping[str, Path], config: str | None, progress: Progress
) -> int:
    """Raises InvalidSetting for what is said of a server, which is not asked."""
    said = [flag for flag, value in _connection_flags(arguments).items() if value is not None]
    if said:
        raise InvalidSetting(f"{', '.join(said)}: no server is asked with --repository; leave out the one or the other")
    if not arguments.repository.is_dir():
        raise FileNotFoundError(f"--repository {arguments.repository}: no such folder; give one that holds models")
    version = push_into(
        arguments.repository, arguments.model, files, version=arguments.version, config=config, progress=progress
    )
    print(f"{arguments.model}/{version} is in {arguments.repository}")
    return 0


def _connection_flags(arguments: argparse.Namespace) -> Mapping[str, object]:
    return {
        "--server": arguments.server,
        "--timeout": arguments.timeout,
        "--tls-ca": arguments.tls_ca,
        "--tls-certificate": arguments.tls_certificate,
        "--tls-key": arguments.tls_key,
    }
