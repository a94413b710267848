"""Tensors in memory that a client shares with the server: named in requests, read from there, answered to there."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.shared_object import SharedObject, ask, place, register
from tests.e2e.wire import Output, Status, Tensor, Wire, infer_request
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import service_pb2 as pb

from preheat.memory.cuda import load_driver

pytestmark = pytest.mark.protocol

SIZE = 2**16
ALLOWED = ("--allow-client-shm", "true")
TWO_INPUTS = """
backend: "double"
max_batch_size: 8
input [
  { name: "A" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "B" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [
  { name: "X" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }
]
"""
# A datatype each whose bytes are used where they lie, are copied first, and are looked into.
MODELS = {"floats": "FP32", "numbers": "INT64", "flags": "BOOL", "words": "BYTES"}


@pytest.fixture(scope="module")
def gatekeeper() -> Iterator[Gatekeeper]:
    with Gatekeeper() as gatekeeper:
        yield gatekeeper


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gatekeeper: Gatekeeper) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("shared")
    for name, datatype in MODELS.items():
        write_model(repository, name, echo_config(datatype=datatype if datatype != "BYTES" else "STRING", dims=(-1,)))
    write_model(repository, "two", TWO_INPUTS)
    write_model(repository, "gated", gatekeeper.config())
    with ServerProcess(repository, options=ALLOWED) as server:
        yield server


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server.grpc_address) as wire:
        yield wire


@pytest.fixture
def client(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_address) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def memory() -> Iterator[SharedObject]:
    with SharedObject(SIZE) as memory:
        yield memory


@pytest.mark.parametrize("region_offset", [0, 3, 4096, 5000])
@pytest.mark.parametrize("offset", [0, 1, 64, 100])
def test_inputs_and_outputs_lie_where_the_client_says(
    wire: Wire, client: InferenceServerClient, memory: SharedObject, region_offset: int, offset: int
) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 12) + region_offset
    memory.put(region_offset + offset, values.tobytes())
    memory.register(client, "r", offset=region_offset, size=SIZE - region_offset)
    target = offset + values.nbytes + 1
    for _ in range(2):
        answer = ask(
            wire,
            "floats",
            [Tensor("INPUT0", "FP32", [2, 12], parameters=place("r", values.nbytes, offset))],
            outputs=[Output("OUTPUT0", place("r", SIZE - region_offset - target, target))],
        )
        assert [(each.name, list(each.shape)) for each in answer.outputs] == [("OUTPUT0", [2, 12])]
        assert list(answer.raw_output_contents) == [b""]
        np.testing.assert_array_equal(memory.array(region_offset + target, np.float32, (2, 12)), values)


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_tensor_comes_from_shared_memory(
    wire: Wire, client: InferenceServerClient, memory: SharedObject, model: str
) -> None:
    data = {
        "floats": np.array([1.5, -2], np.float32).tobytes(),
        "numbers": np.array([7, -(2**40)], np.int64).tobytes(),
        "flags": b"\1\0",
        "words": b"\2\0\0\0ab\0\0\0\0",
    }[model]
    memory.put(5, data)
    memory.register(client, "r")
    tensor = Tensor("INPUT0", MODELS[model], [1, 2], parameters=place("r", len(data), 5))
    assert list(ask(wire, model, [tensor]).raw_output_contents) == [data]
    ask(wire, model, [tensor], outputs=[Output("OUTPUT0", place("r", 100, 1000))])
    assert bytes(memory.memory[1000 : 1000 + len(data)]) == data


def test_raw_contents_are_of_the_inputs_that_are_not_in_shared_memory(
    wire: Wire, client: InferenceServerClient, memory: SharedObject
) -> None:
    shared, sent = np.full((1, 4), 2, np.float32), np.full((1, 4), 3, np.float32)
    memory.put(0, shared.tobytes())
    memory.register(client, "r")
    in_memory = place("r", 16, 0)
    for first, second in ((in_memory, None), (None, in_memory)):
        inputs = [Tensor("A", "FP32", [1, 4], parameters=first), Tensor("B", "FP32", [1, 4], parameters=second)]
        answer = ask(wire, "two", inputs, [sent.tobytes()], [Output("X"), Output("Y", place("r", 16, 64))])
        expected = (shared, sent) if first else (sent, shared)
        assert answer.raw_output_contents[0] == expected[0].tobytes()
        np.testing.assert_array_equal(memory.array(64, np.float32, (1, 4)), expected[1])
    typed = Tensor("B", "FP32", [1, 4], contents={"fp32_contents": [3.0] * 4})
    answer = ask(wire, "two", [Tensor("A", "FP32", [1, 4], parameters=in_memory), typed])
    assert list(answer.raw_output_contents) == [shared.tobytes(), sent.tobytes()]


def test_regions_are_listed_and_forgotten(client: InferenceServerClient, memory: SharedObject, wire: Wire) -> None:
    memory.register(client, "a", offset=10, size=100)
    memory.register(client, "b")
    regions = client.get_system_shared_memory_status(as_json=True)["regions"]
    assert regions["a"] == {"name": "a", "key": memory.key, "offset": "10", "byte_size": "100"}
    assert set(regions) == {"a", "b"}
    assert set(client.get_system_shared_memory_status("b", as_json=True)["regions"]) == {"b"}
    client.unregister_system_shared_memory("a")
    # Whoever cleans up need not know what there is.
    client.unregister_system_shared_memory("a")
    assert wire.status("SystemSharedMemoryStatus", b"\n\1a").code is grpc.StatusCode.NOT_FOUND
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status(as_json=True) == {}


def test_a_region_that_cannot_be_is_refused(client: InferenceServerClient, memory: SharedObject, wire: Wire) -> None:
    def code(name: str, key: str, *, offset: int = 0, size: int = 1) -> grpc.StatusCode:
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
        return wire.status("SystemSharedMemoryRegister", request.SerializeToString()).code

    for key in ("", "/", "/nowhere", "..", "/..", "/../shm" + memory.key, "//etc/passwd", memory.key + "/", "/a\0b"):
        assert code("r", key) is grpc.StatusCode.INVALID_ARGUMENT, key
    link = memory.path.with_suffix(".link")
    link.symlink_to("/etc/passwd")
    try:
        assert code("r", f"/{link.name}") is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        link.unlink()
    for offset, size in ((0, 0), (0, SIZE + 1), (SIZE, 1), (1, SIZE), (2**64 - 1, 2), (0, 2**64 - 1), (2**63, 2**63)):
        assert code("r", memory.key, offset=offset, size=size) is grpc.StatusCode.INVALID_ARGUMENT, (offset, size)
    assert code("", memory.key) is grpc.StatusCode.INVALID_ARGUMENT
    register(wire, "r", memory.key, size=SIZE)
    assert code("r", memory.key) is grpc.StatusCode.ALREADY_EXISTS
    assert set(client.get_system_shared_memory_status(as_json=True)["regions"]) == {"r"}


def test_a_place_outside_its_region_is_refused(wire: Wire, client: InferenceServerClient, memory: SharedObject) -> None:
    memory.register(client, "r", offset=100, size=1000)
    for size, offset in ((16, 985), (1001, 0), (2**63 - 1, 1), (16, 2**63 - 1), (16, 1001)):
        tensor = Tensor("A", "FP32", [1, 4], parameters=place("r", size, offset))
        assert wire.status("ModelInfer", infer_request("two", [tensor])).code is grpc.StatusCode.INVALID_ARGUMENT
        output = Output("OUTPUT0", place("r", size, offset))
        request = infer_request("floats", [Tensor("INPUT0", "FP32", [1, 1])], [bytes(4)], outputs=[output])
        assert wire.status("ModelInfer", request).code is grpc.StatusCode.INVALID_ARGUMENT
    unknown = wire.status("ModelInfer", infer_request("two", [Tensor("A", "FP32", [1, 4], parameters=place("q", 16))]))
    assert unknown == Status(grpc.StatusCode.NOT_FOUND, "Unable to find shared memory region: 'q'")
    for size in (12, 20):
        wrong = wire.status(
            "ModelInfer", infer_request("floats", [Tensor("INPUT0", "FP32", [1, 4], parameters=place("r", size))])
        )
        assert wrong.code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"expected 16 bytes, got {size}" in wrong.text


def test_an_output_that_does_not_fit_is_an_error_and_nothing_is_written(
    wire: Wire, client: InferenceServerClient, memory: SharedObject
) -> None:
    memory.register(client, "r")
    output = Output("OUTPUT0", place("r", 15, 0))
    request = infer_request("floats", [Tensor("INPUT0", "FP32", [1, 4])], [b"\1" * 16], outputs=[output])
    status = wire.status("ModelInfer", request)
    assert status.code is grpc.StatusCode.INTERNAL
    assert "output 'OUTPUT0' (15 bytes) should be at least 16 bytes" in status.text
    assert bytes(memory.memory[:32]) == bytes(32)


def test_a_region_that_was_shrunk_is_refused_and_the_server_lives(
    wire: Wire, client: InferenceServerClient, memory: SharedObject
) -> None:
    memory.register(client, "r")
    os.truncate(memory.path, 4096)
    beyond = infer_request("floats", [Tensor("INPUT0", "FP32", [1, 4], parameters=place("r", 16, 8192))])
    status = wire.status("ModelInfer", beyond)
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "has been shrunk" in status.text
    ask(wire, "floats", [Tensor("INPUT0", "FP32", [1, 4], parameters=place("r", 16, 0))])


def test_a_request_keeps_the_region_that_it_uses(
    wire: Wire, client: InferenceServerClient, memory: SharedObject, gatekeeper: Gatekeeper
) -> None:
    rows = np.arange(4, dtype=np.int64).reshape(1, 4)
    memory.put(0, rows.tobytes())
    memory.register(client, "r")
    gatekeeper.shut()
    try:
        tensor = Tensor("INPUT0", "INT64", [1, 4], parameters=place("r", 32))
        request = infer_request("gated", [tensor], outputs=[Output("OUTPUT0", place("r", 32, 64))])
        with ThreadPoolExecutor(1) as executor:
            asked = executor.submit(wire.infer, request)
            gatekeeper.next()
            client.unregister_system_shared_memory("r")
            gatekeeper.open()
            asked.result()
    finally:
        gatekeeper.open()
    np.testing.assert_array_equal(memory.array(64, np.int64, (1, 4)), rows)


def test_a_region_that_is_forgotten_is_unmapped_whatever_was_refused(
    server: ServerProcess, wire: Wire, client: InferenceServerClient, memory: SharedObject
) -> None:
    """An error holds what it came through; nobody collects garbage while a server has little to do."""
    memory.register(client, "r")
    again = pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.key, byte_size=SIZE).SerializeToString()
    assert wire.status("SystemSharedMemoryRegister", again).code is grpc.StatusCode.ALREADY_EXISTS
    outside = infer_request("floats", [Tensor("INPUT0", "FP32", [1, 1], parameters=place("r", 4, SIZE))])
    assert wire.status("ModelInfer", outside).code is grpc.StatusCode.INVALID_ARGUMENT
    for room in (3, 4):
        output = Output("OUTPUT0", place("r", room))
        request = infer_request("floats", [Tensor("INPUT0", "FP32", [1, 1])], [bytes(4)], outputs=[output])
        expected = grpc.StatusCode.OK if room == 4 else grpc.StatusCode.INTERNAL
        assert wire.status("ModelInfer", request).code is expected
    assert server.maps.count(memory.key) == 1
    client.unregister_system_shared_memory("r")
    assert memory.key not in server.maps


@pytest.mark.parametrize("model", MODELS)
def test_a_client_that_rewrites_its_memory_meanwhile_harms_nobody_else(
    wire: Wire, client: InferenceServerClient, memory: SharedObject, model: str
) -> None:
    """Lengths and flags among it: what is looked at has to be what is used."""
    good = {"words": b"\4\0\0\0abcd", "flags": b"\1" * 8}.get(model, bytes(range(8)))
    shape = {"words": [1, 1], "flags": [1, 8], "floats": [1, 2], "numbers": [1, 1]}[model]
    memory.put(0, good)
    memory.register(client, "r")
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            memory.put(0, b"\xff" * 8)
            memory.put(0, good)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            request = infer_request(model, [Tensor("INPUT0", MODELS[model], shape, parameters=place("r", 8))])
            assert wire.status("ModelInfer", request).code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
            steady = ask(wire, model, [Tensor("INPUT0", MODELS[model], shape)], [good])
            assert list(steady.raw_output_contents) == [good]
    finally:
        done.set()
        writer.join()


def test_shared_memory_is_listed_where_it_is_allowed(client: InferenceServerClient) -> None:
    assert "system_shared_memory" in client.get_server_metadata().extensions


def test_shared_memory_is_off_unless_it_is_allowed(tmp_path: Path, memory: SharedObject) -> None:
    write_model(tmp_path, "floats", echo_config(datatype="FP32"))
    with ServerProcess(tmp_path) as server, Wire(server.grpc_address) as wire:
        request = pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.key, byte_size=10).SerializeToString()
        for rpc in ("Register", "Status", "Unregister"):
            status = wire.status(f"SystemSharedMemory{rpc}", request if rpc == "Register" else b"")
            assert status.code is grpc.StatusCode.UNIMPLEMENTED
            assert "--allow-client-shm" in status.text
        with InferenceServerClient(server.grpc_address) as client:
            assert "system_shared_memory" not in client.get_server_metadata().extensions


def test_the_memory_of_a_gpu_is_refused_where_there_is_none_and_nothing_else_suffers(
    client: InferenceServerClient, wire: Wire
) -> None:
    if load_driver() is not None:
        pytest.skip("this machine has an NVIDIA GPU: tests/gpu")
    request = pb.CudaSharedMemoryRegisterRequest(name="x", raw_handle=bytes(64), device_id=0, byte_size=64)
    status = wire.status("CudaSharedMemoryRegister", request.SerializeToString())
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "failed to register CUDA shared memory region: 'x', GPUs not supported" in status.text
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory("x")
    client.unregister_cuda_shared_memory()
    assert wire.status("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="x").SerializeToString()) == (
        Status(grpc.StatusCode.NOT_FOUND, "Unable to find shared memory region: 'x'")
    )
    extensions = client.get_server_metadata().extensions
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions
