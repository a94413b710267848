"""When what has changed in a model's folder has come to rest. Pure: no clock, no thread, no disk."""

from collections.abc import Iterable, Mapping, Sequence

from preheat.repository.stamps import FolderStamp


class Rest:
    """Which models have changed, and whether each has come to rest. For one thread; knows no clock of its own.

    A model is at rest when its files have not changed for ``settle_s``; or at once, if all that is new of it are
    folders that were renamed in, whole.
    """

    def __init__(self, known: Mapping[str, FolderStamp], settle_s: float) -> None:
        """``known`` is what the models' folders were when they were last told of."""
        self._settle_s = settle_s
        self._told: dict[str, FolderStamp] = dict(known)
        # As last seen, and since when.
        self._restless: dict[str, tuple[FolderStamp | None, float]] = {}

    @property
    def known(self) -> Iterable[str]:
        """The models that were told of, and are there as far as is known."""
        return self._told.keys()

    @property
    def restless(self) -> Sequence[str]:
        """The models to look at again soon."""
        return list(self._restless)

    def see(self, name: str, stamp: FolderStamp | None, now_s: float) -> bool:
        """Note what a model's folder is like now (None: gone); whether that is news, and at rest."""
        told = self._told.get(name)
        if stamp is None and told is None:
            self._restless.pop(name, None)
            return False
        if stamp is not None and stamp.same_files(told):
            self._restless.pop(name, None)
            return False
        seen = self._restless.get(name)
        if seen is None or not _same(seen[0], stamp):
            self._restless[name] = seen = (stamp, now_s)
        if now_s - seen[1] < self._settle_s and not _arrived_whole(told, stamp):
            return False
        del self._restless[name]
        if stamp is None:
            del self._told[name]
        else:
            self._told[name] = stamp
        return True


def _same(one: FolderStamp | None, other: FolderStamp | None) -> bool:
    return one is other if one is None or other is None else one.same_files(other)


def _arrived_whole(before: FolderStamp | None, now: FolderStamp | None) -> bool:
    """Whether all that is new are folders that were renamed in. What is gone may be about to come back."""
    if now is None:
        return False
    if before is None:
        return now.renamed
    changed = {version for version, files in now.versions.items() if before.versions.get(version) != files}
    return (
        bool(changed)
        and changed <= now.renamed_in
        and before.versions.keys() <= now.versions.keys()
        and (now.config, now.shared) == (before.config, before.shared)
    )
