from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("versions",)
    class Version(_message.Message):
        __slots__ = ("model", "version", "state", "reason", "backend", "buckets", "load_seconds", "warmup_seconds", "memory_bytes", "requests", "failures", "note")
        MODEL_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        BACKEND_FIELD_NUMBER: _ClassVar[int]
        BUCKETS_FIELD_NUMBER: _ClassVar[int]
        LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
        WARMUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
        MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
        REQUESTS_FIELD_NUMBER: _ClassVar[int]
        FAILURES_FIELD_NUMBER: _ClassVar[int]
        NOTE_FIELD_NUMBER: _ClassVar[int]
        model: str
        version: int
        state: str
        reason: str
        backend: str
        buckets: str
        load_seconds: float
        warmup_seconds: float
        memory_bytes: int
        requests: int
        failures: int
        note: str
        def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., backend: _Optional[str] = ..., buckets: _Optional[str] = ..., load_seconds: _Optional[float] = ..., warmup_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., requests: _Optional[int] = ..., failures: _Optional[int] = ..., note: _Optional[str] = ...) -> None: ...
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[ListResponse.Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[ListResponse.Version, _Mapping]]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("begin", "piece")
    class Begin(_message.Message):
        __slots__ = ("model", "version", "files", "config")
        MODEL_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        FILES_FIELD_NUMBER: _ClassVar[int]
        CONFIG_FIELD_NUMBER: _ClassVar[int]
        model: str
        version: int
        files: _containers.RepeatedCompositeFieldContainer[PushRequest.File]
        config: str
        def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., files: _Optional[_Iterable[_Union[PushRequest.File, _Mapping]]] = ..., config: _Optional[str] = ...) -> None: ...
    class File(_message.Message):
        __slots__ = ("path", "size", "sha256")
        PATH_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        SHA256_FIELD_NUMBER: _ClassVar[int]
        path: str
        size: int
        sha256: str
        def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    begin: PushRequest.Begin
    piece: bytes
    def __init__(self, begin: _Optional[_Union[PushRequest.Begin, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...
