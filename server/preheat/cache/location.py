"""Which directory the cache is in, and whether it may be trusted: what is in it is code that the server runs."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from preheat.cache.compile_cache import CompileCache
from preheat.cache.files import PRIVATE_FOLDER
from preheat.errors import ServingError

log = logging.getLogger(__name__)

AUTOMATIC, SWITCHED_OFF = "auto", "none"
_WRITABLE_BY_OTHERS = 0o022


class CacheUnusable(ServingError):
    """A cache directory that was asked for cannot be used; the text says why and what would be right."""


def open_cache(where: str, *, max_bytes: int, environment: Mapping[str, str] = os.environ) -> CompileCache | None:
    """The cache in the directory ``where``, in the user's own if that is "auto"; None for "none".

    The user's own directory is a convenience: if it cannot be used, that is logged, and there is no cache. One that
    was named is an order: raises CacheUnusable.
    """
    if where == SWITCHED_OFF:
        return None
    try:
        return _open(locate(where, environment=environment), max_bytes)
    except CacheUnusable as exc:
        if where != AUTOMATIC:
            raise
        log.warning("no compile cache: %s; --cache-dir names another directory, or switches it off with 'none'", exc)
        return None


def locate(where: str, *, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory that ``where`` means, which need not exist. Raises CacheUnusable if there is no telling."""
    try:
        if where != AUTOMATIC:
            return Path(where).expanduser().absolute()
        # As the XDG base directory specification has it: a relative path there is to be ignored.
        base = Path(environment.get("XDG_CACHE_HOME") or "")
        return (base if base.is_absolute() else Path.home() / ".cache") / "preheat"
    except RuntimeError as exc:  # no home
        raise CacheUnusable(f"{where}: {exc}") from exc


def _open(directory: Path, max_bytes: int) -> CompileCache:
    try:
        directory.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        _check_private(directory)
        return CompileCache(directory, max_bytes=max_bytes)
    except OSError as exc:
        raise CacheUnusable(f"the cache directory {directory} cannot be used: {exc.strerror or exc}") from exc


def _check_private(directory: Path) -> None:
    status, user = directory.stat(), os.geteuid()
    if status.st_uid != user:
        raise CacheUnusable(
            f"the cache directory {directory} belongs to user {status.st_uid}, who could have this server (user "
            f"{user}) run any code; give each user's server a directory of its own"
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise CacheUnusable(
            f"other users may write to the cache directory {directory}, and so have this server run any code: "
            "chmod 700 it, or name a folder in it that the server can make for itself"
        )
