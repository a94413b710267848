"""Events as log lines: one as each model comes up, goes, or fails."""

import logging

from preheat.telemetry.events import Compiled, Event, InstancesChanged, StateChanged, VersionFreed, VersionLoaded

log = logging.getLogger("preheat.models")

# Shorter pauses are not worth a word.
_NOTABLE_SECONDS = 0.05


def log_event(event: Event) -> None:
    """Log what an operator wants to see pass; requests leave no line. An :data:`~preheat.telemetry.events.Observer`."""
    match event:
        case VersionLoaded():
            log.info(
                "%s/%d READY: %s on %s, loaded in %.1f s, warmed in %.1f s%s%s",
                event.model, event.version, event.backend, ", ".join(event.devices), event.load_s, event.warmup_s,
                f" ({event.paused_s:.1f} s of that in pauses for others)" if event.paused_s >= _NOTABLE_SECONDS else "",
                f", {event.compiled} compiled, {event.cached} of them from the cache" if event.compiled else "",
            )  # fmt: skip
        case Compiled(ready=True):
            log.warning(
                "%s/%d instance %d is not hot: a request waited %.3f s for %s: %s",
                event.model, event.version, event.instance, event.seconds, event.kind, event.what,
            )  # fmt: skip
        case VersionFreed():
            log.info("%s/%d freed: the process is %.0f MiB smaller", event.model, event.version,
                     event.freed_bytes / 2**20)  # fmt: skip
        case InstancesChanged():
            log.info("%s/%d has %d instances now", event.model, event.version, event.instances)
        case StateChanged(state="FAILED"):
            log.error("%s FAILED: %s", _subject(event), event.reason)
        case StateChanged():
            # LOADING and READY have lines of their own or are about to.
            level = logging.DEBUG if event.state in ("LOADING", "READY") else logging.INFO
            # Of one that is unloaded, that it was unloaded is no news.
            reason = "" if event.reason.upper() == event.state else event.reason
            log.log(level, "%s %s%s", _subject(event), event.state, f": {reason}" if reason else "")


def _subject(event: StateChanged) -> str:
    # Version 0: the model has no version that could be tried.
    return f"{event.model}/{event.version}" if event.version else event.model
