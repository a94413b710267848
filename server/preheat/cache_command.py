"""``preheat cache``: what the compile cache holds, and removing from it."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from preheat.cache import SWITCHED_OFF, Integrity, StoredEntry, inventory, locate, prune, remove, verify
from preheat.settings import InvalidSetting, flag_of, option_fields, variable_of
from preheat.tables import table

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_Remove: TypeAlias = Callable[[Path, StoredEntry], bool]

_SECONDS_PER_DAY = 86400
_SHOWN_DIGITS = 12
_HEADER = ("ENTRY", "ENVIRONMENT", "MODEL", "SIZE", "FILES", "CREATED", "LAST USED", "INTACT")


def add_cache_commands(commands: Commands) -> None:
    """Add ``cache list`` and ``cache prune``, which may run beside servers that use the cache."""
    cache = commands.add_parser("cache", help="list or prune the compile cache")
    actions = cache.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the entries, the last used first")
    _add_directory(listing)
    listing.add_argument("--verify", action="store_true", help="look at every byte, and say which entries are intact")
    listing.add_argument("--json", action="store_true", help="print JSON, with sizes in bytes")
    listing.set_defaults(run=_run_list)
    pruning = actions.add_parser("prune", help="remove entries; those in use at the moment stay")
    _add_directory(pruning)
    which = pruning.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every entry")
    which.add_argument("--environment", metavar="NAME", help="the entries of an environment, as listed")
    which.add_argument(
        "--max-bytes", type=_whole_number, metavar="N", help="what was not used for longest, until the rest fits into N"
    )
    which.add_argument("--unused-days", type=_whole_number, metavar="N", help="what was not used for N days")
    which.add_argument("--damaged", action="store_true", help="what is not intact; looks at every byte")
    pruning.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    pruning.set_defaults(run=_run_prune)


def _add_directory(command: argparse.ArgumentParser) -> None:
    text = f"the cache's folder (default: that of preheat serve, which {variable_of('cache_dir')} may name)"
    command.add_argument(flag_of("cache_dir"), dest="cache_dir", metavar="DIR", help=text)


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number")
    return int(text)


def _run_list(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments.cache_dir)
    entries = _inventory(directory)
    if arguments.verify:
        entries = [verify(directory, entry) for entry in entries]
    if arguments.json:
        print(json.dumps([_as_json(entry) for entry in entries], indent=2))
        return 0
    print("\n".join(table([_HEADER, *(_as_row(entry) for entry in entries)])))
    for entry in entries:
        if entry.damage is not None:
            print(f"{entry.key}: damaged: {entry.damage}")
    print(f"{len(entries)} entries, {_size(sum(entry.size for entry in entries))} in {directory}")
    return 0


def _run_prune(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments.cache_dir)
    entries = _inventory(directory)
    take: _Remove = _pretend if arguments.dry_run else remove
    if arguments.max_bytes is not None:
        gone = list(prune(directory, max_bytes=arguments.max_bytes, remove=take)) if entries else []
        kept: list[StoredEntry] = []
    else:
        chosen = list(_chosen(directory, entries, arguments))
        gone = [entry for entry in chosen if take(directory, entry)]
        kept = [entry for entry in chosen if entry not in gone]
    for entry in gone:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {entry.key}: {_model(entry)}, {_size(entry.size)}")
    for entry in kept:
        print(f"kept {entry.key}: {_model(entry)}, in use")
    print(f"{len(gone)} entries, {_size(sum(entry.size for entry in gone))}")
    return 0


def _chosen(directory: Path, entries: list[StoredEntry], arguments: argparse.Namespace) -> Iterator[StoredEntry]:
    environments = sorted({entry.environment for entry in entries})
    if arguments.environment is not None and arguments.environment not in environments:
        there_are = f"there are {', '.join(environments)}" if environments else "there is no entry"
        raise InvalidSetting(f"--environment: {arguments.environment!r}: no such environment; {there_are}")
    now_s = time.time()
    for entry in entries:
        unused_days = (now_s - entry.used_s) / _SECONDS_PER_DAY
        if (
            arguments.all
            or arguments.environment == entry.environment
            or (arguments.unused_days is not None and unused_days >= arguments.unused_days)
            or (arguments.damaged and verify(directory, entry).integrity is Integrity.DAMAGED)
        ):
            yield entry


def _pretend(_: Path, __: StoredEntry) -> bool:
    return True


def _directory(flag: str | None) -> Path:
    """The cache's folder. Raises InvalidSetting if there is none by order, OSError if one was named and is missing."""
    (setting,) = [each for each in option_fields() if each.name == "cache_dir"]
    named = flag or os.environ.get(variable_of("cache_dir"))
    where = named or str(setting.default)
    if where == SWITCHED_OFF:
        raise InvalidSetting(f"{flag_of('cache_dir')}: {where!r}: there is no cache; name a folder, or 'auto'")
    directory = locate(where)
    if where != setting.default and not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; a server that caches there makes it")
    return directory


def _inventory(directory: Path) -> list[StoredEntry]:
    # Until a server has run there is no folder, and nothing wrong with that.
    return inventory(directory) if directory.is_dir() else []


def _as_row(entry: StoredEntry) -> tuple[str, ...]:
    intact = "-" if entry.integrity is Integrity.UNCHECKED else entry.integrity.value
    created = "-" if entry.created_s is None else _time(entry.created_s)
    name, size = entry.name[:_SHOWN_DIGITS], _size(entry.size)
    return (name, entry.environment, _model(entry), size, str(entry.files), created, _time(entry.used_s), intact)


def _as_json(entry: StoredEntry) -> dict[str, object]:
    return {
        "entry": entry.name,
        "environment": entry.environment,
        "environment_text": entry.environment_text,
        "backend": entry.backend,
        "record": entry.record,
        "size": entry.size,
        "files": entry.files,
        "created": None if entry.created_s is None else _time(entry.created_s),
        "last_used": _time(entry.used_s),
        "integrity": entry.integrity.value,
        "damage": entry.damage,
    }


def _model(entry: StoredEntry) -> str:
    return str(entry.record.get("model", "-"))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _size(size: int) -> str:
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
