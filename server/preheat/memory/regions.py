"""POSIX shared memory that clients have registered, so that requests can name a place in it instead of sending bytes.

A client owns its memory: it may write to it at any time, and shrink it, after which touching what is gone ends the
process (SIGBUS, mmap(2)). The first is met where values are looked at, see :func:`Regions.read`; against the second,
the size is looked at before every use, which leaves a moment in between. Hence only clients that are trusted that far
are given the means (``--allow-client-shm``).
"""

import mmap
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preheat.errors import AlreadyExists, InvalidRequest, RegionNotFound

# Where Linux has the objects of shm_open (shm_overview(7)).
_OBJECTS = Path("/dev/shm")  # noqa: S108 - no temporary file of ours
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# More address space than a region can need to be real.
_MOST_BYTES = 2**46


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a shared-memory object, mapped for as long as this or a view of it lives.

    ``key`` is the object's name, the region ``size`` bytes from ``offset`` on.
    """

    name: str
    key: str
    offset: int
    size: int
    _mapping: mmap.mmap = field(repr=False)
    _object: "_Descriptor" = field(repr=False)

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes from ``offset`` on, writable. Raises InvalidRequest if they are not in the region."""
        if not (offset >= 0 and size >= 0 and offset + size <= self.size):
            raise InvalidRequest(
                f"shared memory region '{self.name}' has {self.size} bytes; there are no {size} from {offset} on"
            )
        start = self.offset % mmap.ALLOCATIONGRANULARITY + offset
        if os.fstat(self._object.number).st_size < self.offset + offset + size:
            raise InvalidRequest(f"shared memory region '{self.name}': its object '{self.key}' has been shrunk")
        return memoryview(self._mapping)[start : start + size]


class _Descriptor:
    """An open file, closed when nobody refers to it any more."""

    __slots__ = ("number",)

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, _OPEN)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Regions:
    """The regions that clients have registered, by name. Any thread; changes take ``_lock``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Map ``size`` bytes from ``offset`` on of the object that a client has made as ``key``.

        Raises AlreadyExists for a name that is taken, InvalidRequest for an object that cannot be mapped so.
        """
        if not name:
            raise InvalidRequest("a shared memory region needs a name")
        region = _map(name, key, offset, size)
        with self._lock:
            if name in self._regions:
                raise AlreadyExists(f"shared memory region '{name}' already in manager")
            self._regions[name] = region

    def unregister(self, name: str) -> None:
        """Forget a region, or all if ``name`` is empty. Requests that use it go on; what is unknown is no error."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def status(self, name: str) -> Mapping[str, Region]:
        """The region called ``name``, or all if it is empty. Raises RegionNotFound."""
        if name:
            return {name: self._find(name)}
        with self._lock:
            return dict(self._regions)

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """A read-only view. Whose values steer a computation has to copy it first: they may change while it is used.

        Raises RegionNotFound, InvalidRequest.
        """
        return self._find(name).view(offset, size).toreadonly()

    def write(self, name: str, offset: int, size: int) -> memoryview:
        """A view to write to. Raises RegionNotFound, InvalidRequest."""
        return self._find(name).view(offset, size)

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise RegionNotFound(f"Unable to find shared memory region: '{name}'")
        return region


def _map(name: str, key: str, offset: int, size: int) -> Region:
    object_name = key.removeprefix("/")
    if not object_name or "/" in object_name or "\0" in object_name or object_name in (".", ".."):
        raise InvalidRequest(f"shared memory key '{key}' is no name of an object: one such as '/inputs' is")
    if not 1 <= size <= _MOST_BYTES or not 0 <= offset <= _MOST_BYTES:
        raise InvalidRequest(f"shared memory region '{name}': {size} bytes from {offset} on cannot be a region")
    try:
        descriptor = _Descriptor(_OBJECTS / object_name)
        status = os.fstat(descriptor.number)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRequest(f"shared memory key '{key}' is no shared-memory object")
        if offset + size > status.st_size:
            raise InvalidRequest(
                f"shared memory region '{name}': there are no {size} bytes from {offset} on in '{key}', "
                f"which has {status.st_size}"
            )
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapping = mmap.mmap(descriptor.number, offset + size - start, offset=start)
    except OSError as exc:
        raise InvalidRequest(f"unable to open shared memory region '{name}', key '{key}': {exc.strerror}") from exc
    return Region(name, key, offset, size, mapping, descriptor)
