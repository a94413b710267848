"""The CUDA driver, as far as sharing memory with another process needs it.

By ctypes, so that it takes the driver alone: no toolkit, no torch. Sources: the CUDA Driver API, sections Memory
Management (``cuIpc*``, ``cuMemGetAddressRange``), Primary Context Management and Context Management. An IPC handle is
the same 64 bytes to the driver as to the runtime, from which clients have it.

**Not run on a GPU yet**: see docs/support-matrix.md.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from preheat.errors import InvalidRequest

# CU_IPC_HANDLE_SIZE of cuda.h.
HANDLE_BYTES = 64
_LIBRARY = "libcuda.so.1"
_LAZY_ENABLE_PEER_ACCESS = 1
_NON_BLOCKING = 1


class CudaError(Exception):
    """A call of the driver failed; the text says which, and what the driver calls the error."""


class CudaMemory(Protocol):
    """A client's memory on a GPU, mapped until :meth:`close`. Any thread."""

    @property
    def size(self) -> int:
        """The bytes that there are."""

    def read(self, offset: int, size: int) -> bytes:
        """A copy of ``size`` bytes from ``offset`` on, which are there. Raises CudaError."""

    def write(self, offset: int, data: memoryview) -> None:
        """Put ``data``, for which there is room, at ``offset``; it is there when this returns. Raises CudaError."""

    def close(self) -> None:
        """Unmap it. Nothing may use it any more."""


class CudaDriver(Protocol):
    """What opens the memory of other processes. Any thread."""

    def open(self, device: int, handle: bytes) -> CudaMemory:
        """Map the allocation behind an IPC ``handle``. Raises InvalidRequest for a GPU that is not there, CudaError."""


def load_driver() -> CudaDriver | None:
    """The driver of this machine; None if it has none, or no GPU."""
    try:
        driver = _Driver(ctypes.CDLL(_LIBRARY))
    except (OSError, CudaError):
        return None
    return driver if driver.devices else None


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class _Driver:
    """The library, initialized. A GPU's primary context, which torch uses too, is held from its first use on."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self.call("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        self.devices = count.value

    def open(self, device: int, handle: bytes) -> CudaMemory:
        """As :meth:`CudaDriver.open` says."""
        if not 0 <= device < self.devices:
            raise InvalidRequest(f"there is no GPU {device}: this machine's are 0 to {self.devices - 1}")
        with self.current(device):
            return _Memory(self, device, handle)

    @contextmanager
    def current(self, device: int) -> Iterator[None]:
        """Make the GPU's context that of the calling thread for a while, and leave the thread its own afterwards."""
        context = self._contexts.get(device)
        if context is None:
            context = ctypes.c_void_p()
            ordinal = ctypes.c_int()
            self.call("cuDeviceGet", ctypes.byref(ordinal), ctypes.c_int(device))
            # Retained twice, by threads that come at once, it is one and the same.
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
            self._contexts[device] = context
        self.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library. Raises CudaError."""
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
            raise CudaError(f"{name}: {(text.value or b'error').decode()} ({status})")


class _Memory:
    """An allocation of another process. Copies have a stream of their own, so that they wait for nobody else's work."""

    def __init__(self, driver: _Driver, device: int, handle: bytes) -> None:
        """Map it; called with the GPU's context current."""
        self._driver = driver
        self._device = device
        self._pointer = ctypes.c_uint64()
        flags = ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)
        driver.call("cuIpcOpenMemHandle_v2", ctypes.byref(self._pointer), _Handle.from_buffer_copy(handle), flags)
        try:
            size = ctypes.c_size_t()
            base = ctypes.c_uint64()
            driver.call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), self._pointer)
            # Of an allocation that was made in one piece the handle is of its beginning.
            self.size = base.value + size.value - self._pointer.value
            self._stream = ctypes.c_void_p()
            driver.call("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(_NON_BLOCKING))
        except CudaError:
            driver.call("cuIpcCloseMemHandle", self._pointer)
            raise

    def read(self, offset: int, size: int) -> bytes:
        """As :meth:`CudaMemory.read` says."""
        room = bytearray(size)
        if size:
            target = (ctypes.c_char * size).from_buffer(room)
            self._copy("cuMemcpyDtoHAsync_v2", target, self._at(offset), ctypes.c_size_t(size))
        return bytes(room)

    def write(self, offset: int, data: memoryview) -> None:
        """As :meth:`CudaMemory.write` says."""
        if data.nbytes:
            source = ctypes.c_char_p(bytes(data))
            self._copy("cuMemcpyHtoDAsync_v2", self._at(offset), source, ctypes.c_size_t(data.nbytes))

    def close(self) -> None:
        """As :meth:`CudaMemory.close` says. A driver that refuses is past helping, and the mapping ends with us."""
        with suppress(CudaError), self._driver.current(self._device):
            try:
                self._driver.call("cuStreamDestroy_v2", self._stream)
            finally:
                self._driver.call("cuIpcCloseMemHandle", self._pointer)

    def _at(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64(self._pointer.value + offset)

    def _copy(self, name: str, *arguments: Any) -> None:
        with self._driver.current(self._device):
            self._driver.call(name, *arguments, self._stream)
            self._driver.call("cuStreamSynchronize", self._stream)
