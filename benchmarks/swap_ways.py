"""The ways in which an artifact is replaced by another, or seems to be."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random

import tritonclient.grpc as grpcclient
from benchmarks.servers import PreheatServer
from benchmarks.swap_answers import Expected, Witness, is_of
from benchmarks.swap_artifacts import MODEL, Artifact, Artifacts, Folder

OTHER = "identity"
SETTLE_S = 1.0
_LIMIT_S, _COMPILE_LIMIT_S = 60.0, 900.0
_LOOK_S = 0.02
_PIECE_PAUSE_S = 0.1
# Of the other model, so that it is asked meanwhile.
_AWAY_S = 0.6

Way = Callable[[], str]


class Ways:
    """What is done to the model's folder, and to that of another model beside it. For one thread.

    A way blocks until what it did has come to rest, and returns what that was, in words. ``problems`` is what was not
    as it has to be.
    """

    def __init__(
        self,
        server: PreheatServer,
        folder: Folder,
        artifacts: Artifacts,
        *,
        witness: Witness,
        check: Callable[[], None],
        dice: Random,
    ) -> None:
        """``check`` raises where it is in vain to wait for answers."""
        self._server = server
        self._folder = folder
        self._artifacts = artifacts
        self._witness = witness
        self._check = check
        self._dice = dice
        self.expected = Expected()
        self.problems: list[str] = []
        self._expect(folder.artifact, folder.newest)

    def choose(self, count: int) -> list[tuple[str, Way]]:
        """So many ways by name, each as often as any other, in an order that is up to the dice."""
        ways: dict[str, Way] = {
            "new version": self._new_version,
            "replaced in place": self._replace,
            "copied over in place": self._copy_over,
            "another configuration": self._reconfigure,
            "another number of instances": self._resize,
            "another backend or precision": self._change_kind,
            "damaged artifact": self._damage,
            "half a copy, then the rest": self._half_copy,
            "version deleted and brought back": self._delete,
            "another model deleted and brought back": self._delete_other,
        }
        names = [name for _ in range(-(-count // len(ways))) for name in ways]
        self._dice.shuffle(names)
        return [(name, ways[name]) for name in names[:count]]

    def compile(self, modules: Sequence[Artifact]) -> list[tuple[str, Way]]:
        """Each of ``modules``, which have to be compiled, in the place of what serves now; and that again."""
        before = self._folder.artifact
        ways: list[tuple[str, Way]] = []
        for each in modules:
            ways += [
                ("compiled", partial(self._drop_in, each)),
                ("what was there again", partial(self._drop_in, before)),
            ]
        return ways

    def _new_version(self) -> str:
        return self._drop_in(self._another())

    def _change_kind(self) -> str:
        """From one backend or precision to the next, with a configuration for it."""
        kinds = list(dict.fromkeys(each.what for each in self._artifacts.good))
        kind = kinds[(kinds.index(self._folder.artifact.what) + 1) % len(kinds)]
        self._folder.delay_us = self._dice.choice((0, 100, 200))
        return self._drop_in(next(each for each in self._artifacts.good if each.what == kind), configure=True)

    def _drop_in(self, artifact: Artifact, *, configure: bool = False) -> str:
        folder = self._folder
        self._expect(artifact, folder.newest + 1)
        folder.add(artifact, configure=configure)
        self._until_answers(artifact, folder.newest)
        folder.remove_older()
        return f"version {folder.newest} is {artifact.what}"

    def _replace(self) -> str:
        artifact = self._another()
        self._expect(artifact, self._folder.newest)
        self._folder.put_in_place(artifact)
        return self._until_in_place(artifact)

    def _copy_over(self) -> str:
        """Over what is there, in pieces, for some seconds."""
        artifact = self._another()
        self._expect(artifact, self._folder.newest)
        self._folder.copy_slowly(artifact, self._folder.version, pause_s=_PIECE_PAUSE_S)
        return self._until_in_place(artifact)

    def _reconfigure(self) -> str:
        folder = self._folder
        if self._dice.random() < 0.5:
            folder.threads = 3 - folder.threads
        else:
            folder.delay_us = self._dice.choice([each for each in (0, 100, 200) if each != folder.delay_us])
        with self._line(f"{MODEL}/{folder.newest} READY", "the model is not loaded again"):
            folder.configure()
        return f"{folder.threads} threads, {folder.delay_us} microseconds to wait"

    def _resize(self) -> str:
        folder = self._folder
        folder.instances = 3 - folder.instances
        # Some have to be loaded for that.
        done = f"{MODEL}/{folder.newest} (has {folder.instances} instances now|READY)"
        with self._line(done, "there are not as many instances"):
            folder.configure()
        return f"{folder.instances} instances"

    def _damage(self) -> str:
        """Something that is refused, as a new version or in place, and is taken away again."""
        folder = self._folder
        # What compiles modules takes those that are not compiled.
        bad = self._artifacts.bad.get(folder.artifact.backend, self._artifacts.bad["eager"])
        what, artifact = self._dice.choice(sorted(bad.items()))
        if self._dice.random() < 0.5:
            self._damage_in_place(artifact)
            return f"{what}, in place"
        number = folder.newest + 1
        with self._line(f"{MODEL}/{number} FAILED", f"{what} is not refused"):
            target = folder.rename_in(artifact, number)
        self._check_reason(number)
        shutil.rmtree(target)
        return f"{what}, as a new version"

    def _damage_in_place(self, artifact: Artifact) -> None:
        number = self._folder.newest
        with self._line(f"{MODEL}/{number} goes on as it was", "it is not refused"):
            self._folder.put_in_place(artifact)
        self._check_reason(number)
        with self._line(f"{MODEL}/{number} READY", "what was there is not loaded again"):
            self._folder.put_in_place(self._folder.artifact)

    def _half_copy(self) -> str:
        """A new version whose copy stands still for longer than files have to rest."""
        artifact, folder = self._another(), self._folder
        self._expect(artifact, folder.newest + 1)
        folder.copy_slowly(artifact, folder.path / str(folder.newest + 1), stop_s=3 * SETTLE_S)
        folder.newest, folder.artifact = folder.newest + 1, artifact
        self._until_answers(artifact, folder.newest)
        folder.remove_older()
        return f"version {folder.newest} is {artifact.what}"

    def _delete(self) -> str:
        """The newest version goes, and the one before serves; then it comes back."""
        folder, newest, before = self._folder, self._folder.artifact, self._another()
        older, hidden = folder.newest - 1, folder.path / ".deleted"
        folder.copy(before, folder.path / str(older))
        time.sleep(SETTLE_S)
        self._expect(before, older)
        folder.version.rename(hidden)
        self._until_answers(before, older)
        self._expect(newest, folder.newest)
        hidden.rename(folder.version)
        self._until_answers(newest, folder.newest)
        folder.remove_older()
        return f"version {folder.newest}, {older} and {folder.newest} again"

    def _delete_other(self) -> str:
        other = self._folder.path.parent / OTHER
        since_s = time.perf_counter()
        hidden = other.rename(other.with_name(f".{OTHER}"))
        self._until(lambda: OTHER not in {name for name, _, _ in self._index()}, f"{OTHER} is in the index still")
        time.sleep(_AWAY_S)
        with self._line(f"{OTHER}/1 READY", f"{OTHER} does not come back"):
            hidden.rename(other)
        self.expected.other_was_away(since_s, time.perf_counter())
        return OTHER

    def _another(self) -> Artifact:
        """Another artifact for the same configuration."""
        now = self._folder.artifact
        return self._dice.choice([e for e in self._artifacts.good if e.backend == now.backend and e.mark != now.mark])

    def _expect(self, artifact: Artifact, version: int) -> None:
        self.expected.may(artifact.mark, version, time.perf_counter())

    def _until_in_place(self, artifact: Artifact) -> str:
        self._folder.artifact = artifact
        self._until_answers(artifact, self._folder.newest)
        return f"version {self._folder.newest} is {artifact.what}"

    def _until_answers(self, artifact: Artifact, version: int) -> None:
        """Until the artifact answers; from then on nothing else may."""
        limit_s = _COMPILE_LIMIT_S if artifact.backend == "torch_compile" else _LIMIT_S
        # Half of it, or what had its number before, may have failed until now.
        before = len(self._server.log)
        # What changed meanwhile, as a slow copy does, is loaded again by itself.
        failed = re.compile(rf"{MODEL}/{version} FAILED(?!.*changed while it was loaded)")

        def answers() -> bool:
            if failed.search(self._server.log, before):
                raise RuntimeError(f"not loaded; the log ends with\n{self._server.log[-3000:]}")
            return is_of(self._witness.latest, artifact.mark)

        self._until(answers, f"no answer of {artifact.mark:.2f}", limit_s)
        self.expected.only(artifact.mark, version, time.perf_counter())

    def _until(self, holds: Callable[[], bool], otherwise: str, limit_s: float = _LIMIT_S) -> None:
        """Look again and again: neither the folder nor the server tells of anything by itself."""
        end_s = time.perf_counter() + limit_s
        while not holds():
            self._check()
            if time.perf_counter() > end_s:
                raise TimeoutError(f"{otherwise} after {limit_s:.0f} s; the log ends with\n{self._server.log[-3000:]}")
            time.sleep(_LOOK_S)

    @contextmanager
    def _line(self, pattern: str, otherwise: str) -> Iterator[None]:
        """Wait, after what is done within, for another line of the log that has ``pattern``."""

        def count() -> int:
            return len(re.findall(pattern, self._server.log))

        before = count()
        yield
        self._until(lambda: count() > before, otherwise)

    def _check_reason(self, version: int) -> None:
        """The index is to say why a version is not served, or what serves in its place."""
        if not any(name == MODEL and number == str(version) and why for name, number, why in self._index()):
            self.problems.append(f"the index does not say why version {version} was refused")

    def _index(self) -> list[tuple[str, str, str]]:
        with grpcclient.InferenceServerClient(self._server.grpc_address) as client:
            rows = client.get_model_repository_index().models
        return [(row.name, row.version, row.reason) for row in rows]
