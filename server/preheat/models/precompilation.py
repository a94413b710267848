"""Compiling beside a server that serves: in a process of low priority, which fills the compile cache.

A compilation takes the interpreter's lock and, in dynamo's case, one of its own for minutes; models that serve in the
same process would wait. The server itself then loads warm.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)


class Precompiler:
    """Has models compiled by ``preheat compile``. Any thread may call it. ``options`` are that command's, as given."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options = tuple(options)

    def compile(self, folder: Path, version: int) -> None:
        """Compile a version of the model in ``folder`` into the cache. Blocks, for minutes; a failure is logged.

        Its log goes where this process's goes. If this process ends, so does that one.
        """
        command = [sys.executable, "-m", "preheat", "compile", str(folder), "--version", str(version)]
        log.info("%s/%d is compiled by a process of its own, at low priority", folder.name, version)
        # Its stdin is the leash: it ends with this process, however that ends.
        try:
            done = subprocess.Popen(  # noqa: S603 - the command is ours
                [*command, "--yield", *self._options], stdin=subprocess.PIPE, stdout=sys.stderr
            )
            with done:
                code = done.wait()
            failure = f"exit code {code}" if code else ""
        except OSError as exc:
            failure = str(exc)
        if failure:
            log.warning(
                "%s/%d could not be compiled apart (%s); it is loaded here, which may slow down what serves",
                folder.name, version, failure,
            )  # fmt: skip


def yield_to_others(leash: int) -> None:
    """Make this process run only when no other wants to, and end when the file of descriptor ``leash`` ends."""
    os.nice(19)
    # Where it is not permitted, as in some sandboxes, being nice has to do.
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    threading.Thread(target=_end_with, args=(leash,), name="leash", daemon=True).start()


def _end_with(leash: int) -> None:
    # Not through sys.stdin: a thread that waits in a buffered read has the interpreter abort when it ends.
    while os.read(leash, 1):
        continue
    os._exit(1)
