"""POSIX shared memory that a client has made: used where it lies.

Its owner may write to it at any time, and shrink it, after which touching what is gone ends the process (SIGBUS,
mmap(2)). The first is met where values are looked at, see ``sharing.py``; against the second, the size is looked at
before every use, which leaves a moment in between. Hence only clients that are trusted that far are given the means
(``--allow-client-shm``).
"""

import mmap
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preheat.errors import InvalidRequest
from preheat.memory.bounds import MOST_BYTES, check_place

# Where Linux has the objects of shm_open (shm_overview(7)).
_OBJECTS = Path("/dev/shm")  # noqa: S108 - no temporary file of ours
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class SystemRoom:
    """A place in system shared memory: a :class:`~preheat.memory.regions.Room`."""

    view: memoryview

    @property
    def size(self) -> int:
        """The bytes that fit."""
        return len(self.view)

    def put(self, data: memoryview) -> None:
        """Write ``data``, which fits."""
        np.copyto(np.frombuffer(self.view, np.uint8, len(data)), np.frombuffer(data, np.uint8))


@dataclass(frozen=True, slots=True)
class SystemRegion:
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
        """A read-only view. Raises InvalidRequest if it is not in the region."""
        return self._view(offset, size).toreadonly()

    def room(self, offset: int, size: int) -> SystemRoom:
        """A place to write to. Raises InvalidRequest if it is not in the region."""
        return SystemRoom(self._view(offset, size))

    def _view(self, offset: int, size: int) -> memoryview:
        check_place(self.name, self.size, offset, size)
        start = self.offset % mmap.ALLOCATIONGRANULARITY + offset
        if os.fstat(self._object.number).st_size < self.offset + offset + size:
            raise InvalidRequest(f"shared memory region '{self.name}': its object '{self.key}' has been shrunk")
        return memoryview(self._mapping)[start : start + size]


def map_object(name: str, key: str, offset: int, size: int) -> SystemRegion:
    """Map a part of the object that a client has made as ``key``. Raises InvalidRequest if it cannot be."""
    object_name = key.removeprefix("/")
    if not object_name or "/" in object_name or "\0" in object_name or object_name in (".", ".."):
        raise InvalidRequest(f"shared memory key '{key}' is no name of an object: one such as '/inputs' is")
    if not 1 <= size <= MOST_BYTES or not 0 <= offset <= MOST_BYTES:
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
    except ValueError as exc:
        raise InvalidRequest(f"shared memory region '{name}': its object '{key}' has just been shrunk") from exc
    return SystemRegion(name, key, offset, size, mapping, descriptor)


class _Descriptor:
    """An open file, closed when nobody refers to it any more."""

    __slots__ = ("number",)

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, _OPEN)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
