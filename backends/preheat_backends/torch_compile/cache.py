"""Where inductor and Triton keep what they compiled: for one model, in a folder of its own."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from pathlib import Path

from torch._inductor import cpu_vec_isa
from torch._inductor.utils import clear_caches

_BINARIES = frozenset({".so", ".cubin", ".hsaco"})
# Those that this process has tried instruction sets with. Read and written under dynamo's lock.
_instruction_set_programs: Mapping[Path, bytes] | None = None


@contextmanager
def caching_in(folder: Path | None, *, on_cpu: bool, complete: bool = True) -> Iterator[None]:
    """Have what is compiled until the block ends looked for and left in ``folder``; None leaves that to torch. Nests.

    ``on_cpu``: it is for the CPU, whose instruction sets matter. ``complete``: also what the process has in memory is
    left there, for the next process to find.
    The caller holds dynamo's lock: torch reads where its caches are from the environment, each time it looks.
    """
    if folder is None:
        yield
        return
    places = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    before = {name: os.environ.get(name) for name in places}
    if before != places:
        if on_cpu:
            _know_instruction_sets(folder / "instruction_sets")
        if complete:
            # Else what another model has compiled or loaded in this process would be taken from memory, and the folder
            # lack it when the next process looks there.
            clear_caches()
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


def _know_instruction_sets(folder: Path) -> None:
    """Have torch know, and ``folder`` hold, what the compiler can build for this CPU.

    torch has it compile a dozen programs for that, which takes 10 s, and looks for them where it keeps what it
    compiled: in a folder for each model. So they are tried out once in a process, and copied to the others; a process
    that finds them in the first folder it looks into compiles none.
    """
    global _instruction_set_programs  # noqa: PLW0603 - it says what torch has in its own global tables
    if _instruction_set_programs is None:
        _try_instruction_sets(folder)
        found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
        _instruction_set_programs = {path.relative_to(folder): path.read_bytes() for path in found}
    else:
        for path, content in _instruction_set_programs.items():
            # Any of them may be missing, or cut off, after a crash.
            place = folder / path
            if not place.is_file() or place.stat().st_size != len(content):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)


def _try_instruction_sets(folder: Path) -> None:
    """As a new process would, which knows of no extension yet.

    What torch notes of them in its objects changes the flags, and then the programs are others than those that the next
    process looks for.
    """
    classes = [each for each in vars(cpu_vec_isa).values() if isinstance(each, type)]
    for owner in (cpu_vec_isa, *classes):
        for attribute in list(vars(owner).values()):
            if isinstance(attribute, _lru_cache_wrapper):
                attribute.cache_clear()
    for instruction_set in cpu_vec_isa.supported_vec_isa_list:
        for name in [name for name in vars(instruction_set) if name.startswith("_is_")]:
            delattr(instruction_set, name)
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        cpu_vec_isa.pick_vec_isa()
    finally:
        _restore({"TORCHINDUCTOR_CACHE_DIR": before})
