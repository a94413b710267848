"""What is known of a model beside the states of its versions."""

import threading
from dataclasses import dataclass, field

from preheat.models.handle import Handle
from preheat.models.planning import Source
from preheat.repository.stamps import FolderStamp


@dataclass(frozen=True, slots=True)
class Kept:
    """What served before its successor did, and what it was loaded from."""

    handle: Handle
    source: Source


@dataclass(slots=True)
class Record:
    """One model. All of it is read and changed under ``lock``, which whoever changes the model holds meanwhile.

    ``serving`` and ``failed`` say what each version was loaded from, or in vain. ``kept`` is what the last change
    replaced, and ``came`` the versions that it brought. ``hurried`` is how many wait for the lock who wait for no
    canary, and changes under the manager's lock.
    """

    name: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    serving: dict[int, Source] = field(default_factory=dict)
    failed: dict[int, Source] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    came: set[int] = field(default_factory=set)
    hurried: int = 0
    _held: bool = False
    _held_at: FolderStamp | None = None

    def hold(self, stamp: FolderStamp | None) -> None:
        """What was asked for by hand stands while the model's folder is as ``stamp`` says (None: there is none)."""
        self._held, self._held_at = True, stamp

    @property
    def held(self) -> bool:
        """Whether something was asked for by hand, of late."""
        return self._held

    def holds(self, stamp: FolderStamp | None) -> bool:
        """Whether that is so, the folder being as ``stamp`` says."""
        if stamp is None or self._held_at is None:
            return self._held and stamp is self._held_at
        return self._held and stamp.same_files(self._held_at)

    def follow(self) -> None:
        """From now on, what is served is what the folder says."""
        self._held = False
