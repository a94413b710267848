"""What a package's library leaves mapped once it is closed: nothing, though g++ would have it stay."""

import ctypes
import shutil
import subprocess
from _ctypes import dlclose
from pathlib import Path

import pytest

from preheat_backends.aot_inductor.unloading import make_unloadable

SOURCE = """
inline int& counter() { static int count = 0; return ++count; }
extern "C" int next() { return counter(); }
"""

pytestmark = pytest.mark.compiles


@pytest.fixture
def library(tmp_path: Path) -> Path:
    source = tmp_path / "unique.cpp"
    source.write_text(SOURCE.replace("return ++count; }", "++count; return count; }"))
    library = tmp_path / "unique.so"
    compiler = shutil.which("g++")
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library


def stays_mapped(library: Path) -> bool:
    opened = ctypes.CDLL(str(library))
    assert [opened.next(), opened.next()] == [1, 2]
    dlclose(opened._handle)
    return str(library) in Path("/proc/self/maps").read_text()


def test_a_library_as_it_is_stays_and_one_that_was_changed_goes(library: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.so"
    changed.write_bytes(library.read_bytes())
    assert make_unloadable(changed) > 0
    assert make_unloadable(changed) == 0
    assert stays_mapped(library)
    assert not stays_mapped(changed)
    # And what it keeps begins anew with each load.
    assert not stays_mapped(changed)


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58), b"no library at all", bytes(5000)]
)
def test_what_is_no_library_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.so"
    path.write_bytes(content)
    assert make_unloadable(path) == 0
    assert path.read_bytes() == content


def test_a_library_that_is_cut_off_is_left_alone(library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    for length in range(0, len(content), 997):
        path = tmp_path / "cut.so"
        path.write_bytes(content[:length])
        make_unloadable(path)
        path.unlink()
