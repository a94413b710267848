"""Requests whose tensors lie in memory that a client shares: read from there, and answered to there."""

from collections.abc import Mapping
from functools import partial

from preheat.errors import ExecutionFailed, OutputTooLarge
from preheat.memory.regions import Regions, Room
from preheat.messages import InferRequest, InferResponse
from preheat.scheduling.pending import Answer, Reply
from preheat.tensors import Loan, to_buffer

# Types whose values never say where to read: only those are used where they lie, for a client can change them at any
# time. A length, an index or a mask that changes after it was looked at could lead a computation anywhere.
_HARMLESS = frozenset({"FP16", "BF16", "FP32", "FP64"})


def share(regions: Regions, request: InferRequest, reply: Reply) -> tuple[InferRequest, Reply]:
    """``request`` with its inputs from shared memory, and a reply that puts outputs there before it is given.

    A region lives on while a request uses it, also when it is unregistered. What has to be copied is lent only, and
    counts as the request's payload from now on. Raises RegionNotFound, InvalidRequest.
    """
    inputs = list(request.inputs)
    loans: dict[str, Loan] = {}
    for position, place in request.sources:
        tensor, data = inputs[position], regions.view(*place)
        if isinstance(data, Loan):
            loans[tensor.name] = data
        elif tensor.datatype in _HARMLESS:
            inputs[position] = tensor._replace(data=data)
        else:
            loans[tensor.name] = Loan(len(data), partial(bytes, data))
    if request.places:
        rooms = {name: regions.room(*place) for name, place in request.places.items()}
        reply = partial(_put_and_reply, rooms, reply, reads_shared=bool(request.sources))
    request = request._replace(inputs=tuple(inputs))
    if loans:
        lent_bytes = sum(loan.size for loan in loans.values())
        # The way in which others of its kind were admitted is none for what is lent.
        request = request._replace(loans=loans, payload_bytes=request.payload_bytes + lent_bytes, kind=None)
    return request, reply


def _put_and_reply(rooms: dict[str, Room], reply: Reply, answer: Answer, *, reads_shared: bool) -> Answer:
    """Give the answer, and the rooms up: whoever has called may keep the request, and its reply, for longer."""
    if isinstance(answer, InferResponse):
        if reads_shared and len(answer.outputs) > 1:
            # One output may be a view of an input that lies where another is to go.
            answer = answer._replace(outputs=tuple(each._replace(array=each.array.copy()) for each in answer.outputs))
        answer = _put(rooms, answer)
    rooms.clear()
    return reply(answer)


def _put(rooms: Mapping[str, Room], answer: InferResponse) -> Answer:
    """Copy outputs to where the client wants them."""
    outputs = list(answer.outputs)
    for position, output in enumerate(outputs):
        room = rooms.get(output.name)
        if room is None:
            continue
        raw = to_buffer(output.array)
        if len(raw) > room.size:
            return OutputTooLarge(
                f"shared memory size specified with the request for output '{output.name}' ({room.size} bytes) should "
                f"be at least {len(raw)} bytes to hold the results"
            )
        try:
            room.put(memoryview(raw).cast("B"))
        except ExecutionFailed as exc:
            return exc
        outputs[position] = output._replace(placed=True)
    return answer._replace(outputs=tuple(outputs))
