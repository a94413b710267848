"""The RPCs of ``inference.GRPCInferenceService`` as functions of bytes, shared by all transports."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from preheat.engine import Engine, Ticket
from preheat.errors import InternalError, InvalidRequest, ServingError, Unsupported
from preheat.memory.cuda_regions import CudaRegion
from preheat.memory.system_regions import SystemRegion
from preheat.messages import InferResponse
from preheat.protocol import grpc_service_pb2 as pb
from preheat.protocol.codec import decode_request, encode_response
from preheat.protocol.metadata import (
    encode_index,
    encode_model_metadata,
    encode_server_metadata,
    encode_statistics,
)
from preheat.scheduling.pending import Answer
from preheat.transport.parsing import parse

log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
Respond: TypeAlias = Callable[[bytes | ServingError], None]


def infer(
    engine: Engine, payload: bytes, *, deadline_s: float | None, respond: Respond, wake: bool = True
) -> Ticket | None:
    """ModelInfer.

    ``respond`` is called exactly once, possibly on an instance thread, with the encoded answer or an error. ``wake`` as
    in :meth:`Engine.submit`.
    """
    try:
        request = decode_request(payload, deadline_s=deadline_s)
    except ServingError as exc:
        respond(exc.as_answer())
        return None
    except Exception:
        log.exception("a ModelInfer request could not be decoded")
        respond(InternalError())
        return None

    def reply(answer: Answer) -> Answer:
        given = _encode(answer)
        respond(given)
        return given if isinstance(given, ServingError) else answer

    return engine.submit(request, reply, wake=wake)


class ControlMethods:
    """The RPCs that answer at once. Any thread; none blocks. They raise ServingError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def table(self) -> Mapping[str, Callable[[bytes], bytes]]:
        """The methods by RPC name."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "SystemSharedMemoryStatus": self._shared_memory_status,
            "SystemSharedMemoryRegister": self._shared_memory_register,
            "SystemSharedMemoryUnregister": self._shared_memory_unregister,
            "CudaSharedMemoryStatus": self._cuda_shared_memory_status,
            "CudaSharedMemoryUnregister": self._cuda_shared_memory_unregister,
        }

    def _server_live(self, payload: bytes) -> bytes:
        parse(pb.ServerLiveRequest(), payload)
        return pb.ServerLiveResponse(live=self._engine.live()).SerializeToString()

    def _server_ready(self, payload: bytes) -> bytes:
        parse(pb.ServerReadyRequest(), payload)
        return pb.ServerReadyResponse(ready=self._engine.ready()).SerializeToString()

    def _model_ready(self, payload: bytes) -> bytes:
        request = parse(pb.ModelReadyRequest(), payload)
        return pb.ModelReadyResponse(ready=self._engine.model_ready(request.name, request.version)).SerializeToString()

    def _server_metadata(self, payload: bytes) -> bytes:
        parse(pb.ServerMetadataRequest(), payload)
        return encode_server_metadata(self._engine.server_metadata()).SerializeToString()

    def _model_metadata(self, payload: bytes) -> bytes:
        request = parse(pb.ModelMetadataRequest(), payload)
        return encode_model_metadata(self._engine.model_metadata(request.name, request.version)).SerializeToString()

    def _model_config(self, payload: bytes) -> bytes:
        request = parse(pb.ModelConfigRequest(), payload)
        return pb.ModelConfigResponse(
            config=self._engine.model_config(request.name, request.version)
        ).SerializeToString()

    def _model_statistics(self, payload: bytes) -> bytes:
        request = parse(pb.ModelStatisticsRequest(), payload)
        return encode_statistics(self._engine.statistics(request.name, request.version)).SerializeToString()

    def _repository_index(self, payload: bytes) -> bytes:
        request = parse(pb.RepositoryIndexRequest(), payload)
        _refuse_repository_name(request.repository_name)
        return encode_index(self._engine.index(ready_only=request.ready)).SerializeToString()

    def _shared_memory_status(self, payload: bytes) -> bytes:
        request = parse(pb.SystemSharedMemoryStatusRequest(), payload)
        response = pb.SystemSharedMemoryStatusResponse()
        for name, region in self._engine.regions().status(request.name, SystemRegion).items():
            found = response.regions[name]
            found.name, found.key, found.offset, found.byte_size = name, region.key, region.offset, region.size
        return response.SerializeToString()

    def _shared_memory_register(self, payload: bytes) -> bytes:
        request = parse(pb.SystemSharedMemoryRegisterRequest(), payload)
        self._engine.regions().register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse().SerializeToString()

    def _shared_memory_unregister(self, payload: bytes) -> bytes:
        request = parse(pb.SystemSharedMemoryUnregisterRequest(), payload)
        self._engine.regions().unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse().SerializeToString()

    def _cuda_shared_memory_status(self, payload: bytes) -> bytes:
        request = parse(pb.CudaSharedMemoryStatusRequest(), payload)
        response = pb.CudaSharedMemoryStatusResponse()
        for name, region in self._engine.regions().status(request.name, CudaRegion).items():
            found = response.regions[name]
            found.name, found.device_id, found.byte_size = name, region.device, region.size
        return response.SerializeToString()

    def _cuda_shared_memory_unregister(self, payload: bytes) -> bytes:
        request = parse(pb.CudaSharedMemoryUnregisterRequest(), payload)
        self._engine.regions().unregister(request.name, CudaRegion)
        return pb.CudaSharedMemoryUnregisterResponse().SerializeToString()


class BlockingMethods:
    """The RPCs that take their time, for a thread of their own. They raise ServingError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def table(self) -> Mapping[str, Callable[[bytes], bytes]]:
        """The methods by RPC name."""
        return {
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            # The first use of a GPU makes its context.
            "CudaSharedMemoryRegister": self._cuda_shared_memory_register,
        }

    def _cuda_shared_memory_register(self, payload: bytes) -> bytes:
        request = parse(pb.CudaSharedMemoryRegisterRequest(), payload)
        self._engine.regions().register_cuda(request.name, request.raw_handle, request.device_id, request.byte_size)
        return pb.CudaSharedMemoryRegisterResponse().SerializeToString()

    def _load(self, payload: bytes) -> bytes:
        request = parse(pb.RepositoryModelLoadRequest(), payload)
        _refuse_repository_name(request.repository_name)
        config: str | None = None
        files: dict[str, bytes] = {}
        for key, parameter in request.parameters.items():
            if key == "config":
                _check_type(key, parameter, "string_param")
                config = parameter.string_param
            elif key.startswith("file:"):
                _check_type(key, parameter, "bytes_param")
                files[key.removeprefix("file:")] = parameter.bytes_param
            else:
                raise InvalidRequest(f"unrecognized load parameter '{key}'.")
        self._engine.load(request.model_name, config=config, files=files)
        return pb.RepositoryModelLoadResponse().SerializeToString()

    def _unload(self, payload: bytes) -> bytes:
        request = parse(pb.RepositoryModelUnloadRequest(), payload)
        _refuse_repository_name(request.repository_name)
        for key, parameter in request.parameters.items():
            # There are no ensembles, so no model has dependents.
            if key != "unload_dependents":
                raise InvalidRequest(f"unrecognized unload parameter '{key}'.")
            _check_type(key, parameter, "bool_param")
        self._engine.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse().SerializeToString()


def _refuse_repository_name(name: str) -> None:
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def _check_type(key: str, parameter: pb.ModelRepositoryParameter, expected: str) -> None:
    if parameter.WhichOneof("parameter_choice") != expected:
        raise InvalidRequest(f"invalid value type for '{key}' parameter, expected {expected}")


def _encode(answer: Answer) -> bytes | ServingError:
    if not isinstance(answer, InferResponse):
        return answer.as_answer()
    try:
        return encode_response(answer)
    except ServingError as exc:
        return exc.as_answer()
    except Exception:
        log.exception("an answer of model '%s' could not be encoded", answer.model)
        return InternalError()
