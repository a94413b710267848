"""How the CUDA driver is called, against a stand-in in C: that arguments arrive as cuda.h declares them.

A slip there ends the process on a machine with a GPU. What a GPU does is for tests/gpu.
"""

import ctypes
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preheat.errors import InvalidRequest
from preheat.memory import cuda
from preheat.memory.cuda import HANDLE_BYTES, CudaDriver, CudaError

SOURCE = Path(__file__).with_name("stand_in_driver.c")
SIZE = 5000
CONTENT = bytes(each % 251 for each in range(SIZE))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, SOURCE, "-lrt"], check=True)
    return path


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> CudaDriver:
    monkeypatch.setattr(cuda, "_LIBRARY", str(library))
    driver = cuda.load_driver()
    assert driver is not None
    return driver


@pytest.fixture
def allocation() -> Iterator[Path]:
    path = Path("/dev/shm") / f"preheat-test-{uuid.uuid4().hex}"  # noqa: S108 - where Linux has them
    path.write_bytes(CONTENT)
    yield path
    path.unlink()


def handle_of(allocation: Path) -> bytes:
    return f"/{allocation.name}".encode().ljust(HANDLE_BYTES, b"\0")


def open_things(library: Path) -> tuple[int, ...]:
    """Mappings, streams, and contexts that this thread has not put back."""
    loaded = ctypes.CDLL(str(library))
    return loaded.stand_in_mappings(), loaded.stand_in_streams(), loaded.stand_in_depth()


def test_what_is_read_and_written_is_where_it_should_be(driver: CudaDriver, library: Path, allocation: Path) -> None:
    memory = driver.open(1, handle_of(allocation))
    assert memory.size == SIZE
    assert memory.read(0, SIZE) == CONTENT
    assert memory.read(4097, 3) == CONTENT[4097:4100]
    assert memory.read(SIZE, 0) == b""
    memory.write(4999, memoryview(b"z"))
    memory.write(1, memoryview(bytearray(b"\0ab\0"))[1:])
    memory.write(SIZE, memoryview(b""))
    assert allocation.read_bytes() == CONTENT[:1] + b"ab\0" + CONTENT[4:-1] + b"z"
    assert open_things(library) == (1, 1, 0)
    memory.close()
    assert open_things(library) == (0, 0, 0)


def test_any_thread_may_use_memory_and_a_gpu_is_taken_once(driver: CudaDriver, library: Path, allocation: Path) -> None:
    retained = ctypes.CDLL(str(library)).stand_in_contexts
    before = retained()
    memory = driver.open(0, handle_of(allocation))

    def use(start: int) -> tuple[bytes, tuple[int, ...]]:
        for _ in range(50):
            memory.write(start, memoryview(bytes([start])))
        return memory.read(start, 1), open_things(library)

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(use, range(8))) == [(bytes([start]), (1, 1, 0)) for start in range(8)]
    memory.close()
    assert retained() == before + 1


def test_what_the_driver_refuses_is_said_in_its_words_and_leaves_nothing_open(
    driver: CudaDriver, library: Path, allocation: Path
) -> None:
    with pytest.raises(CudaError, match=r"cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE \(1\)"):
        driver.open(0, bytes(HANDLE_BYTES))
    memory = driver.open(0, handle_of(allocation))
    with pytest.raises(CudaError, match=r"cuMemcpyDtoHAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        memory.read(SIZE, 2**20)
    memory.close()
    assert open_things(library) == (0, 0, 0)


@pytest.mark.parametrize("device", [-1, 2, 2**40])
def test_a_gpu_that_is_not_there_is_refused(driver: CudaDriver, allocation: Path, device: int) -> None:
    with pytest.raises(InvalidRequest, match=f"there is no GPU {device}: this machine's are 0 to 1"):
        driver.open(device, handle_of(allocation))


def test_a_machine_without_the_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARY", "libcuda-that-nobody-has.so.1")
    assert cuda.load_driver() is None
