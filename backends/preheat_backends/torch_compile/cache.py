"""Where inductor and Triton keep what they compiled: for one model, in a folder of its own."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from pathlib import Path

from torch._inductor import cpu_vec_isa
from torch._inductor.utils import clear_caches

_BINARIES = frozenset({".so", ".cubin", ".hsaco"})
# The folder that was last compiled into. Read and written under dynamo's lock.
_latest: Path | None = None


@contextmanager
def caching_in(folder: Path | None, *, complete: bool = True) -> Iterator[None]:
    """Have what is compiled until the block ends looked for and left in ``folder``; None leaves that to torch. Nests.

    ``complete``: also what the process has in memory is left there, for the next process to find.
    The caller holds dynamo's lock: torch reads where its caches are from the environment, each time it looks.
    """
    if folder is None:
        yield
        return
    places = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    before = {name: os.environ.get(name) for name in places}
    if complete and before != places:
        _forget(folder)
    os.environ.update(places)
    try:
        yield
    finally:
        _restore(before)


def count_binaries(folder: Path) -> int:
    """How many kernels lie compiled in ``folder`` and below it."""
    return sum(1 for path in folder.rglob("*") if path.suffix in _BINARIES)


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _forget(folder: Path) -> None:
    """Have torch look on the disk for all that it needs.

    What another model has compiled or loaded in this process would otherwise be taken from memory, and ``folder`` lack
    it when the next process looks there. That the compiler can build for this CPU is tried out by a library, which is
    left there too.
    """
    global _latest  # noqa: PLW0603 - it says what torch has in its own global tables
    clear_caches()
    if folder != _latest:
        classes = [each for each in vars(cpu_vec_isa).values() if isinstance(each, type)]
        for owner in (cpu_vec_isa, *classes):
            for attribute in list(vars(owner).values()):
                if isinstance(attribute, _lru_cache_wrapper):
                    attribute.cache_clear()
        _forget_findings()
        _latest = folder


def _forget_findings() -> None:
    """Have each instruction set tried out as by a new process, which knows of no extension yet.

    torch notes what it found in these objects, and then tries out with other flags: the libraries it leaves are not
    those that a new process looks for, which compiles them for half a minute.
    """
    for instruction_set in cpu_vec_isa.supported_vec_isa_list:
        for name in [name for name in vars(instruction_set) if name.startswith("_is_")]:
            delattr(instruction_set, name)
