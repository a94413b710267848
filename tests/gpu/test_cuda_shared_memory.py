"""Tensors in a client's memory on a GPU: the real driver, tritonclient's own helpers, a server of each transport.

Not run on a GPU yet: see docs/support-matrix.md. It wants what tritonclient[cuda] brings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.transports import TRANSPORTS, installed

from preheat.memory.cuda import load_driver

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


def test_a_handle_that_is_none_is_refused(client: Any) -> None:
    with pytest.raises(grpcclient.InferenceServerException, match="the handle cannot be opened on GPU 0"):
        client.register_cuda_shared_memory("bad", b"AAAA" * 21 + b"AA==", DEVICE, 64)
