"""A client's memory on a GPU, by CUDA IPC: copied to and from the host, which is where requests are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from preheat.errors import ExecutionFailed, InvalidRequest
from preheat.memory.bounds import MOST_BYTES, check_place
from preheat.memory.cuda import HANDLE_BYTES, CudaDriver, CudaError, CudaMemory
from preheat.tensors import Loan


@dataclass(frozen=True, slots=True)
class CudaRoom:
    """A place in a GPU's memory: a :class:`~preheat.memory.regions.Room`."""

    region: "CudaRegion"
    offset: int
    size: int

    def put(self, data: memoryview) -> None:
        """Write ``data``, which fits. Raises ExecutionFailed if the driver does not."""
        self.region.write(self.offset, data)


@dataclass(frozen=True, slots=True)
class CudaRegion:
    """The first ``size`` bytes of an allocation on GPU ``device``, mapped for as long as this or a room in it lives."""

    name: str
    device: int
    size: int
    _mapping: "_CudaMapping" = field(repr=False)

    def view(self, offset: int, size: int) -> Loan:
        """What is there, to be copied. Raises InvalidRequest if it is not in the region."""
        check_place(self.name, self.size, offset, size)
        return Loan(size, partial(self._read, offset, size))

    def room(self, offset: int, size: int) -> CudaRoom:
        """A place to write to. Raises InvalidRequest if it is not in the region."""
        check_place(self.name, self.size, offset, size)
        return CudaRoom(self, offset, size)

    def write(self, offset: int, data: memoryview) -> None:
        """Copy ``data`` there. Raises ExecutionFailed if the driver does not."""
        with self._explaining():
            self._mapping.memory.write(offset, data)

    def _read(self, offset: int, size: int) -> bytes:
        with self._explaining():
            return self._mapping.memory.read(offset, size)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except CudaError as exc:
            raise ExecutionFailed(f"CUDA shared memory region '{self.name}': {exc}") from exc


def map_allocation(cuda: CudaDriver, name: str, handle: bytes, device: int, size: int) -> CudaRegion:
    """Map the beginning of the allocation that ``handle`` stands for. Raises InvalidRequest if it cannot be."""
    subject = f"failed to register CUDA shared memory region '{name}'"
    if len(handle) != HANDLE_BYTES:
        raise InvalidRequest(f"{subject}: raw_handle has {len(handle)} bytes; a CUDA IPC handle has {HANDLE_BYTES}")
    if not 1 <= size <= MOST_BYTES:
        raise InvalidRequest(f"{subject}: {size} bytes cannot be a region")
    try:
        mapping = _CudaMapping(cuda.open(device, handle))
    except InvalidRequest as exc:
        raise InvalidRequest(f"{subject}: {exc}") from exc
    except CudaError as exc:
        raise InvalidRequest(f"{subject}: the handle cannot be opened on GPU {device}: {exc}") from exc
    if size > mapping.memory.size:
        raise InvalidRequest(f"{subject}: there are no {size} bytes: the allocation has {mapping.memory.size}")
    return CudaRegion(name, device, size, mapping)


class _CudaMapping:
    """Memory of a GPU, closed when nobody refers to it any more."""

    __slots__ = ("memory",)

    def __init__(self, memory: CudaMemory) -> None:
        self.memory = memory

    def __del__(self) -> None:
        self.memory.close()
