"""Seeing what changes in the repositories, and telling of it once it has come to rest.

The truth is what the folders' stamps say. Events of the file system only tell where to look, and when: where there are
none, since it is a network's, or some were lost, everything is looked through every so often.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import watchfiles

from preheat.errors import InvalidConfig
from preheat.repository.resting import Rest
from preheat.repository.scan import model_names
from preheat.repository.stamps import FolderStamp, stamp_model

log = logging.getLogger(__name__)
# It has a line for every change, which is more than anyone wants to know.
logging.getLogger("watchfiles").setLevel(logging.WARNING)

# How often is looked whether something came to rest, and how long events are collected before any is looked after.
_TICK_MS = 100
_STOP_SECONDS = 2.0
# File systems that other machines write to, of which the kernel tells nothing (proc(5), mountinfo).
_WITHOUT_EVENTS = re.compile(r"nfs\d?|cifs|smb3?|9p|ceph|glusterfs|lustre|afs|virtiofs|fuse(?!blk).*")
_MOUNTS = Path("/proc/self/mountinfo")


class Watcher:
    """Watches ``repositories`` on a thread of its own, and calls ``tell`` there with models that changed and rest.

    ``tell`` gets names, of models that are new or gone too; it must return soon.
    """

    def __init__(
        self,
        repositories: Sequence[Path],
        *,
        known: Mapping[str, FolderStamp],
        tell: Callable[[Sequence[str]], None],
        settle_s: float,
        poll_s: float,
    ) -> None:
        self._repositories = [path.resolve() for path in repositories]
        self._identities = {path: _identity(path) for path in self._repositories}
        self._rest = Rest(known, settle_s)
        self._tell = tell
        self._poll_s = poll_s
        self._stop = threading.Event()
        # Whether a repository was gone when last looked at.
        self._away = False
        self._thread = threading.Thread(target=self._run, name="repository watcher", daemon=True)

    def start(self) -> None:
        """Begin. Call once."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the thread, at most for as long as looking takes."""
        self._stop.set()
        if self._thread.ident is not None:
            # A file system that hangs is not to hang the server.
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for names in self._news():
                    self._look(names)
            except Exception:
                log.exception("watching the repositories failed; it goes on")
                self._stop.wait(self._poll_s)

    def _news(self) -> Iterable[set[str] | None]:
        """Names of models that something happened to, every so often; None: any may have changed."""
        # All that came before there were events, which is why they are begun first.
        looked_s = -math.inf
        for names in self._events():
            everything = time.monotonic() - looked_s >= self._poll_s
            looked_s = time.monotonic() if everything else looked_s
            yield None if everything else names

    def _events(self) -> Iterable[set[str]]:
        watched = [path for path in self._repositories if has_events(path)]
        for path in set(self._repositories) - set(watched):
            log.info("%s is on a file system without events: looked through every %.0f s", path, self._poll_s)
        if watched:
            try:
                for changes in watchfiles.watch(
                    *watched, watch_filter=None, debounce=_TICK_MS, step=_TICK_MS // 2, rust_timeout=_TICK_MS,
                    stop_event=self._stop, yield_on_timeout=True, ignore_permission_denied=True,
                ):  # fmt: skip
                    yield {name for _, path in changes for name in self._names(path)}
            # A RuntimeError is how watchfiles tells that it may have no more instances of inotify.
            except (OSError, RuntimeError) as exc:
                log.warning(
                    "the repositories cannot be watched (%s): looked through every %.0f s; is "
                    "fs.inotify.max_user_watches or fs.inotify.max_user_instances too low?", exc, self._poll_s,
                )  # fmt: skip
        while not self._stop.wait(_TICK_MS / 1000):
            yield set()

    def _names(self, path: str) -> Iterable[str]:
        for repository in self._repositories:
            if Path(path).is_relative_to(repository) and Path(path) != repository:
                yield Path(path).relative_to(repository).parts[0]

    def _look(self, names: set[str] | None) -> None:
        """Look at the models called so (None: at all), and at those that were restless; tell of what rests."""
        if self._any_away():
            return
        try:
            if names is None:
                names = {*model_names(self._repositories), *self._rest.known}
            looked_at = sorted({*names, *self._rest.restless})
            stamps = {name: stamp_model(self._repositories, name) for name in looked_at}
        except InvalidConfig:
            return  # it went meanwhile, which the next look says
        # And it may have gone while it was looked through, which would be every model deleted.
        if self._any_away():
            return
        news = [name for name, stamp in stamps.items() if self._rest.see(name, stamp, time.monotonic())]
        if news:
            self._tell(news)

    def _any_away(self) -> bool:
        """Whether a repository is not there, which is logged as it goes."""
        away = [path for path in self._repositories if self._is_away(path)]
        if away and not self._away:
            # Unmounted, say: that is not every model deleted.
            log.warning("%s is not there; what changes in the repositories is not seen until it is", away[0])
        self._away = bool(away)
        return bool(away)

    def _is_away(self, repository: Path) -> bool:
        """Whether it is not there, or something empty is in its place: where it was mounted, say."""
        identity = _identity(repository)
        try:
            if identity is None or (identity != self._identities[repository] and not model_names([repository])):
                return True
        except InvalidConfig:
            return True
        self._identities[repository] = identity
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def has_events(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether the kernel tells of all that is written below ``path``: not if another machine may write there."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return True
    # "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw": the mount point is the fifth field, its type
    # comes first after the dash. Of mounts at the same place the last counts.
    kinds = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in lines}
    above = [point for point in kinds if path.is_relative_to(point)]
    return not above or _WITHOUT_EVENTS.fullmatch(kinds[max(above, key=len)]) is None
