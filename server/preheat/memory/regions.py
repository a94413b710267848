"""Memory that clients have registered, so that requests can name a place in it instead of sending bytes.

Of two kinds: ``system_regions.py`` and ``cuda_regions.py``.
"""

import threading
from collections.abc import Mapping
from typing import Protocol, TypeVar

from preheat.errors import AlreadyExists, InvalidRequest, RegionNotFound
from preheat.memory.cuda import CudaDriver
from preheat.memory.cuda_regions import CudaRegion, map_allocation
from preheat.memory.system_regions import SystemRegion, map_object
from preheat.tensors import Loan

RegionT = TypeVar("RegionT", SystemRegion, CudaRegion)


class Room(Protocol):
    """A place in a client's memory, to be written to."""

    @property
    def size(self) -> int:
        """The bytes that fit."""

    def put(self, data: memoryview) -> None:
        """Write ``data``, which fits. Raises ExecutionFailed if it cannot be written."""


class Regions:
    """The regions that clients have registered, by name. Any thread; changes take ``_lock``.

    Both kinds share one set of names, as they do in Triton, since requests do not say which they mean.
    """

    def __init__(self, cuda: CudaDriver | None = None) -> None:
        """``cuda`` None: this machine has no GPU."""
        self._cuda = cuda
        self._lock = threading.Lock()
        self._regions: dict[str, SystemRegion | CudaRegion] = {}

    @property
    def has_cuda(self) -> bool:
        """Whether clients can share a GPU's memory."""
        return self._cuda is not None

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Map ``size`` bytes from ``offset`` on of the object that a client has made as ``key``.

        Raises AlreadyExists for a name that is taken, InvalidRequest for an object that cannot be mapped so.
        """
        _check_name(name)
        self._add(map_object(name, key, offset, size))

    def register_cuda(self, name: str, handle: bytes, device: int, size: int) -> None:
        """Map the first ``size`` bytes of the allocation on GPU ``device`` of which ``handle`` is the CUDA IPC handle.

        Raises AlreadyExists for a name that is taken, InvalidRequest for what cannot be mapped so.
        """
        _check_name(name)
        if self._cuda is None:
            raise InvalidRequest(
                f"failed to register CUDA shared memory region: '{name}', GPUs not supported: the server's machine has "
                "no NVIDIA GPU, or no driver; system shared memory works"
            )
        self._add(map_allocation(self._cuda, name, handle, device, size))

    def unregister(self, name: str, kind: type[SystemRegion | CudaRegion] = SystemRegion) -> None:
        """Forget a region of ``kind``, or all if ``name`` is empty.

        Requests that use it go on; what is unknown, or of the other kind, is no error.
        """
        with self._lock:
            names = [each for each in ([name] if name else self._regions) if isinstance(self._regions.get(each), kind)]
            # Named, so that what nobody uses is unmapped once the lock is free.
            gone = [self._regions.pop(each) for each in names]
        del gone

    def close(self) -> None:
        """Forget all, of either kind, when no client is served any more."""
        with self._lock:
            gone, self._regions = self._regions, {}
        gone.clear()

    def status(self, name: str, kind: type[RegionT]) -> Mapping[str, RegionT]:
        """The region of ``kind`` called ``name``, or all if it is empty. Raises RegionNotFound."""
        with self._lock:
            found = {each: region for each, region in self._regions.items() if isinstance(region, kind)}
        if not name:
            return found
        if name not in found:
            raise _not_found(name)
        return {name: found[name]}

    def view(self, name: str, offset: int, size: int) -> memoryview | Loan:
        """A read-only view of what may change while it is used; what is on a GPU can only be copied.

        Raises RegionNotFound, InvalidRequest.
        """
        return self._find(name).view(offset, size)

    def room(self, name: str, offset: int, size: int) -> Room:
        """A place to write to. Raises RegionNotFound, InvalidRequest."""
        return self._find(name).room(offset, size)

    def _add(self, region: SystemRegion | CudaRegion) -> None:
        with self._lock:
            if region.name in self._regions:
                raise AlreadyExists(f"shared memory region '{region.name}' already in manager")
            self._regions[region.name] = region

    def _find(self, name: str) -> SystemRegion | CudaRegion:
        region = self._regions.get(name)
        if region is None:
            raise _not_found(name)
        return region


def _not_found(name: str) -> RegionNotFound:
    return RegionNotFound(f"Unable to find shared memory region: '{name}'")


def _check_name(name: str) -> None:
    if not name:
        raise InvalidRequest("a shared memory region needs a name")
