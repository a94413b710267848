"""Tensors in a client's memory on a GPU: the real driver, and a server of each transport, which is another process.

Not run on a GPU yet: see docs/support-matrix.md. Memory is made by tritonclient's own helpers, which want what
tritonclient[cuda] brings, and by torch built for CUDA.
"""

import base64
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.transports import TRANSPORTS, installed

from preheat.memory.cuda import HANDLE_BYTES, load_driver

pytestmark = pytest.mark.skipif(load_driver() is None, reason="this machine has no NVIDIA GPU")

BYTES = 2**22
DEVICE = 0


@pytest.fixture(params=TRANSPORTS)
def client(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    write_model(tmp_path, "echo", echo_config(datatype="FP32", dims=(-1,)))
    options = ("--transport", installed(request.param), "--allow-client-shm", "true")
    with (
        ServerProcess(tmp_path, options=options) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as it,
    ):
        yield it
        assert "Traceback" not in server.log


def test_inputs_come_from_a_gpu_and_outputs_go_there(client: Any) -> None:
    # Without it, the helpers raise what is not taken for a missing module.
    pytest.importorskip("cuda.bindings.runtime", reason="needs tritonclient[cuda]")
    shared = pytest.importorskip("tritonclient.utils.cuda_shared_memory")
    assert "cuda_shared_memory" in client.get_server_metadata(as_json=True)["extensions"]
    source, target = (shared.create_shared_memory_region(name, BYTES, DEVICE) for name in ("source", "target"))
    try:
        for name, handle in (("source", source), ("target", target)):
            client.register_cuda_shared_memory(name, shared.get_raw_handle(handle), DEVICE, BYTES)
        assert len(client.get_cuda_shared_memory_status().regions) == 2
        for start in range(3):
            rows = np.arange(start, start + BYTES // 4, dtype=np.float32)[np.newaxis]
            shared.set_shared_memory_region(source, [rows])
            given = grpcclient.InferInput("INPUT0", rows.shape, "FP32")
            given.set_shared_memory("source", rows.nbytes)
            wanted = grpcclient.InferRequestedOutput("OUTPUT0")
            wanted.set_shared_memory("target", rows.nbytes)
            client.infer("echo", [given], outputs=[wanted])
            np.testing.assert_array_equal(shared.get_contents_as_numpy(target, np.float32, rows.shape), rows)
        client.unregister_cuda_shared_memory()
        assert not client.get_cuda_shared_memory_status().regions
    finally:
        for handle in (source, target):
            shared.destroy_shared_memory_region(handle)


def test_tensors_of_torch_are_read_and_written_where_they_lie(client: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is not built for CUDA")
    memory = torch.zeros(2 * BYTES, dtype=torch.uint8, device=f"cuda:{DEVICE}")
    source, target = (half.view(torch.float32) for half in memory.split(BYTES))
    handle, offset, size = allocation_of(memory.data_ptr())
    client.register_cuda_shared_memory("torch", handle, DEVICE, size)
    try:
        for start in range(3):
            source.copy_(torch.arange(start, start + len(source)))
            # The server copies on a stream of its own, which waits for nobody's work.
            torch.cuda.synchronize()
            given = grpcclient.InferInput("INPUT0", [1, len(source)], "FP32")
            given.set_shared_memory("torch", BYTES, offset=offset)
            wanted = grpcclient.InferRequestedOutput("OUTPUT0")
            wanted.set_shared_memory("torch", BYTES, offset=offset + BYTES)
            client.infer("echo", [given], outputs=[wanted])
            assert torch.equal(target, source)
    finally:
        client.unregister_cuda_shared_memory("torch")


def allocation_of(address: int) -> tuple[bytes, int, int]:
    """The IPC handle, in base64, of the allocation around ``address``; how far in that is; and the allocation's size.

    torch gives many tensors places in one allocation, and it is the allocation that is shared.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    pointer, base, size = ctypes.c_uint64(address), ctypes.c_uint64(), ctypes.c_size_t()
    handle = ctypes.create_string_buffer(HANDLE_BYTES)
    assert driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), pointer) == 0
    assert driver.cuIpcGetMemHandle(handle, pointer) == 0
    return base64.b64encode(handle.raw), address - base.value, size.value


def test_a_handle_that_is_none_is_refused(client: Any) -> None:
    with pytest.raises(grpcclient.InferenceServerException, match="the handle cannot be opened on GPU 0"):
        client.register_cuda_shared_memory("bad", b"AAAA" * 21 + b"AA==", DEVICE, 64)
