"""A client's shared-memory object, and the requests that name places in it."""

import mmap
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tests.e2e.wire import Output, Tensor, Wire, infer_request
from tritonclient.grpc import service_pb2 as pb

REGISTER = "SystemSharedMemoryRegister"


class SharedObject:
    """An object of ``size`` bytes, there from ``__enter__`` to ``__exit__``. ``key`` is its name for shm_open(3)."""

    def __init__(self, size: int) -> None:
        self.key = f"/preheat-test-{uuid.uuid4().hex}"
        self.path = Path("/dev/shm") / self.key[1:]  # noqa: S108 - where Linux has them
        self.size = size

    def __enter__(self) -> Self:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(descriptor, self.size)
        self.memory = mmap.mmap(descriptor, self.size)
        os.close(descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink()
        # Whoever still has a view of it keeps it.
        del self.memory

    def put(self, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data

    def array(self, offset: int, dtype: Any, shape: Sequence[int]) -> NDArray[Any]:
        """What lies at ``offset`` now, copied."""
        count = int(np.prod(shape))
        return np.frombuffer(self.memory, dtype, count, offset).reshape(shape).copy()

    def register(self, client: Any, name: str, *, offset: int = 0, size: int | None = None) -> None:
        client.register_system_shared_memory(name, self.key, self.size if size is None else size, offset)


def place(region: str, size: int, offset: int | None = None) -> dict[str, str | int]:
    """The parameters of a tensor that lies in shared memory."""
    found: dict[str, str | int] = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return found if offset is None else {**found, "shared_memory_offset": offset}


def ask(
    wire: Wire, model: str, inputs: Sequence[Tensor], raw: Sequence[bytes] = (), outputs: Sequence[Output] = ()
) -> pb.ModelInferResponse:
    """Send a request and decode the answer."""
    return pb.ModelInferResponse.FromString(wire.call("ModelInfer", infer_request(model, inputs, raw, outputs=outputs)))


def register(wire: Wire, name: str, key: str, *, offset: int = 0, size: int) -> None:
    """Register a region with whatever it says."""
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    wire.call(REGISTER, request.SerializeToString())
