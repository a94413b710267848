"""A client's memory on a GPU, with a stand-in for the driver: what is said of places, names and lifetimes.

That the driver itself is called as it wants to be is for tests/gpu.
"""

import gc

import numpy as np
import pytest
from tests.unit.builders import Replies

from preheat.errors import AlreadyExists, ExecutionFailed, InvalidRequest, OutputTooLarge, RegionNotFound
from preheat.memory.cuda import HANDLE_BYTES, CudaError, CudaMemory
from preheat.memory.cuda_regions import CudaRegion
from preheat.memory.regions import Regions
from preheat.memory.system_regions import SystemRegion
from preheat.messages import InferRequest, InferResponse, InputTensor, OutputTensor, Place
from preheat.sharing import share
from preheat.tensors import Array, DataType

SIZE = 64
HANDLE = bytes(HANDLE_BYTES)


class StandInMemory:
    """Memory of the host that plays that of a GPU."""

    def __init__(self) -> None:
        self.size = SIZE
        self.content = bytearray(range(SIZE))
        self.closed = False
        self.broken = False

    def read(self, offset: int, size: int) -> bytes:
        self._check()
        return bytes(self.content[offset : offset + size])

    def write(self, offset: int, data: memoryview) -> None:
        self._check()
        self.content[offset : offset + len(data)] = data

    def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        assert not self.closed
        if self.broken:
            raise CudaError("cuMemcpy: CUDA_ERROR_LAUNCH_FAILED (719)")


class StandInDriver:
    """Opens whatever handle it is given on GPU 0, but one of ones."""

    def __init__(self) -> None:
        self.opened: list[StandInMemory] = []

    def open(self, device: int, handle: bytes) -> CudaMemory:
        if device != 0:
            raise InvalidRequest(f"there is no GPU {device}: this machine's are 0 to 0")
        if handle == b"\1" * HANDLE_BYTES:
            raise CudaError("cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE (1)")
        self.opened.append(StandInMemory())
        return self.opened[-1]


@pytest.fixture
def driver() -> StandInDriver:
    return StandInDriver()


@pytest.fixture
def regions(driver: StandInDriver) -> Regions:
    regions = Regions(driver)
    regions.register_cuda("r", HANDLE, 0, SIZE)
    return regions


def asking(source: Place | None = None, target: Place | None = None, datatype: str = "UINT8") -> InferRequest:
    size = 0 if source is None else source.size
    return InferRequest(
        "m",
        "",
        "",
        (InputTensor("x", datatype, (size,), b""),),
        sources=() if source is None else ((0, source),),
        places={} if target is None else {"y": target},
    )


def _copy(request: InferRequest) -> bytes:
    return request.loans["x"].copy()


def answering(array: Array) -> InferResponse:
    return InferResponse("m", "1", "", (OutputTensor("y", DataType.UINT8, array),))


def test_inputs_are_copied_from_the_gpu(regions: Regions, driver: StandInDriver) -> None:
    request, _ = share(regions, asking(Place("r", 3, 4), datatype="FP32"), Replies())
    driver.opened[0].content[3] = 99
    lent = request.loans["x"]
    assert (lent.size, lent.copy(), request.payload_bytes) == (4, bytes([99, 4, 5, 6]), 4)


def test_outputs_are_copied_to_the_gpu_before_the_answer_is_given(regions: Regions, driver: StandInDriver) -> None:
    replies = Replies()
    _, reply = share(regions, asking(target=Place("r", 10, 8)), replies)
    reply(answering(np.array([7, 8], np.uint8)))
    answer = replies.wait()
    assert isinstance(answer, InferResponse)
    assert answer.outputs[0].placed
    assert driver.opened[0].content[9:13] == bytes([9, 7, 8, 12])


def test_an_output_that_does_not_fit_is_refused_and_nothing_is_written(regions: Regions, driver: StandInDriver) -> None:
    replies = Replies()
    _, reply = share(regions, asking(target=Place("r", 10, 1)), replies)
    reply(answering(np.array([7, 8], np.uint8)))
    assert isinstance(replies.wait(), OutputTooLarge)
    assert driver.opened[0].content == bytes(range(SIZE))


@pytest.mark.parametrize(("offset", "size"), [(0, SIZE + 1), (SIZE, 1), (-1, 4), (60, 5), (2**62, 4)])
def test_a_place_outside_the_region_is_refused(regions: Regions, offset: int, size: int) -> None:
    for request in (asking(Place("r", offset, size)), asking(target=Place("r", offset, size))):
        with pytest.raises(InvalidRequest, match=f"region 'r' has {SIZE} bytes; there are no {size} from {offset} on"):
            share(regions, request, Replies())


def test_what_the_driver_refuses_is_that_requests_error(regions: Regions, driver: StandInDriver) -> None:
    driver.opened[0].broken = True
    request, _ = share(regions, asking(Place("r", 0, 4)), Replies())
    lent = request.loans["x"]
    with pytest.raises(ExecutionFailed, match="region 'r': cuMemcpy: CUDA_ERROR_LAUNCH_FAILED"):
        lent.copy()
    replies = Replies()
    _, reply = share(regions, asking(target=Place("r", 0, 8)), replies)
    reply(answering(np.array([7], np.uint8)))
    assert isinstance(replies.wait(), ExecutionFailed)


@pytest.mark.parametrize(
    ("handle", "device", "size", "told"),
    [
        (b"short", 0, 4, "raw_handle has 5 bytes; a CUDA IPC handle has 64"),
        (b"", 0, 4, "raw_handle has 0 bytes"),
        (HANDLE, 1, 4, "there is no GPU 1: this machine's are 0 to 0"),
        (HANDLE, -1, 4, "there is no GPU -1"),
        (HANDLE, 0, 0, "0 bytes cannot be a region"),
        (HANDLE, 0, SIZE + 1, "there are no 65 bytes: the allocation has 64"),
        (b"\1" * HANDLE_BYTES, 0, 4, "the handle cannot be opened on GPU 0: cuIpcOpenMemHandle_v2"),
    ],
)
def test_what_cannot_be_a_region_is_refused_and_not_kept(
    driver: StandInDriver, handle: bytes, device: int, size: int, told: str
) -> None:
    regions = Regions(driver)
    with pytest.raises(InvalidRequest, match="failed to register CUDA shared memory region 'x': " + told):
        regions.register_cuda("x", handle, device, size)
    assert not regions.status("", CudaRegion)
    gc.collect()
    assert all(each.closed for each in driver.opened)


def test_without_a_gpu_there_is_nothing_to_register_and_status_is_empty() -> None:
    regions = Regions()
    with pytest.raises(InvalidRequest, match="region: 'x', GPUs not supported: the server's machine has no NVIDIA GPU"):
        regions.register_cuda("x", HANDLE, 0, 4)
    assert regions.status("", CudaRegion) == {}
    regions.unregister("x", CudaRegion)


def test_kinds_share_their_names_and_nothing_else(regions: Regions, driver: StandInDriver) -> None:
    with pytest.raises(AlreadyExists):
        regions.register_cuda("r", HANDLE, 0, 4)
    assert driver.opened[1].closed
    assert list(regions.status("", CudaRegion)) == ["r"]
    assert regions.status("", SystemRegion) == {}
    with pytest.raises(RegionNotFound):
        regions.status("r", SystemRegion)
    for name in ("r", ""):
        regions.unregister(name, SystemRegion)
        assert regions.status("r", CudaRegion)["r"].size == SIZE


def test_an_answer_gives_the_memory_up_while_the_request_is_kept(regions: Regions, driver: StandInDriver) -> None:
    replies = Replies()
    kept = share(regions, asking(target=Place("r", 0, 8)), replies)
    regions.unregister("r", CudaRegion)
    kept[1](answering(np.array([7], np.uint8)))
    assert driver.opened[0].closed


def test_an_error_gives_the_memory_up_once_it_is_an_answer(regions: Regions, driver: StandInDriver) -> None:
    driver.opened[0].broken = True
    with pytest.raises(ExecutionFailed) as raised:
        _copy(share(regions, asking(Place("r", 0, 4)), Replies())[0])
    regions.unregister("r", CudaRegion)
    assert not driver.opened[0].closed
    raised.value.as_answer()
    # What pytest keeps of it.
    del raised
    assert driver.opened[0].closed


def test_closing_unmaps_all(regions: Regions, driver: StandInDriver) -> None:
    regions.register_cuda("s", HANDLE, 0, SIZE)
    regions.close()
    assert [each.closed for each in driver.opened] == [True, True]
    assert not regions.status("", CudaRegion)


def test_memory_is_unmapped_when_its_last_user_is_gone(regions: Regions, driver: StandInDriver) -> None:
    replies = Replies()
    _, reply = share(regions, asking(target=Place("r", 0, 8)), replies)
    regions.unregister("r", CudaRegion)
    assert not driver.opened[0].closed
    reply(answering(np.array([77], np.uint8)))
    assert driver.opened[0].content[0] == 77
    del reply
    gc.collect()
    assert driver.opened[0].closed
