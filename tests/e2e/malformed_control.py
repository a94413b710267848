"""Mistakes in calls that ask or change what is served: each with its code and what the status text must name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from tests.e2e.malformed_requests import INVALID, NOT_FOUND, UNIMPLEMENTED
from tests.e2e.wire import SERVICE
from tritonclient.grpc import service_pb2 as pb

INTERNAL = grpc.StatusCode.INTERNAL
OK = grpc.StatusCode.OK

# The RPCs that name a model, with the field that does.
MODEL_FIELDS = {
    "ModelReady": "name", "ModelMetadata": "name", "ModelConfig": "name", "ModelStatistics": "name",
    "ModelInfer": "model_name", "RepositoryModelLoad": "model_name", "RepositoryModelUnload": "model_name",
}  # fmt: skip
WITH_VERSION = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer")
WITHOUT_FIELDS = ("ServerLive", "ServerReady", "ServerMetadata")
WITH_REPOSITORY = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
# Those have tests of their own.
SHARED_MEMORY = (
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
)  # fmt: skip
ANSWERED = (*WITHOUT_FIELDS, *MODEL_FIELDS, "RepositoryIndex")
NOT_ANSWERED = tuple(method.name for method in SERVICE.methods if method.name not in (*ANSWERED, *SHARED_MEMORY))

# The server has "echo" loaded, "spare" and "broken" not, all beside a folder ".hidden" that is none.
NAMES = (
    "nobody", "../echo", "./echo", "echo/", "echo/1", "echo/../echo", "a/b", "/etc", "/", ".", "..", "...", "~",
    ".hidden", "__pycache__", "echo\0", "\0echo", "\0", "ECHO", " echo", "echo ", "echo\n", "*", "ech?", "%65cho",
    "${HOME}", "%s{0}", "echo;unload", "C:\\echo", "naïve 😀", "e\u0301cho", "\u202eohce", "e" * 1000, "m" * 2**20,
)  # fmt: skip
BAD_VERSIONS = (
    "x",
    "-1",
    "0",
    "00",
    "1.0",
    "1e0",
    "0x1",
    "+1",
    " 1",
    "1 ",
    "1\0",
    "1/1",
    "\u0661",
    "9" * 400,
    "latest",
)
ABSENT_VERSIONS = ("2", "10", "9" * 18)

# Bytes that are no message, whatever the message.
NO_MESSAGES = {
    "garbage": b"\xff\xff\xff\xff garbage",
    "a field cut short": b"\x0a\x05ech",
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x07",
    "a length of 2**64": b"\x0a" + b"\xff" * 9 + b"\x01",
    "a varint of 12 bytes": b"\x08" + b"\x80" * 11 + b"\x01",
    "field 0": b"\x02\x00",
    "wire type 6": b"\x0e",
    "wire type 7": b"\x0f",
    "a group that does not end": b"\x9b\x06\x08\x01",
    "the end of no group": b"\x9c\x06",
    "half a fixed number": b"\x9d\x06\x01\x02",
}
# Of messages that begin with a string.
NO_TEXTS = {
    "a lone byte": b"\xff",
    "a surrogate": b"\xed\xa0\x80",
    "a cut character": b"\xc3",
    "an overlong": b"\xc0\xaf",
}


@dataclass(frozen=True, slots=True)
class ControlCase:
    """One mistaken call."""

    rpc: str
    what: str
    request: bytes
    code: grpc.StatusCode
    fragments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.rpc}: {self.what}"


def request_of(rpc: str, **fields: Any) -> bytes:
    """An encoded request of an RPC."""
    encoded: bytes = getattr(pb, f"{rpc}Request")(**fields).SerializeToString()
    return encoded


def for_model(rpc: str, model: str, version: str | None = None) -> bytes:
    """A request of an RPC about a model."""
    versions = {} if version is None else {"model_version" if rpc == "ModelInfer" else "version": version}
    return request_of(rpc, **{MODEL_FIELDS[rpc]: model}, **versions)


# What a model that is not there gets, and what the text begins with.
_UNKNOWN: Mapping[str, tuple[grpc.StatusCode, str]] = {
    "ModelReady": (OK, ""),
    "ModelMetadata": (NOT_FOUND, "Request for unknown model: '"),
    "ModelConfig": (NOT_FOUND, "Request for unknown model: '"),
    "ModelStatistics": (INVALID, "requested model '"),
    "ModelInfer": (NOT_FOUND, "Request for unknown model: '"),
    "RepositoryModelLoad": (INTERNAL, "failed to load '"),
    "RepositoryModelUnload": (INTERNAL, "failed to unload '"),
}


def _names() -> Iterator[ControlCase]:
    for rpc, (code, begin) in _UNKNOWN.items():
        for name in (*NAMES, "") if rpc != "ModelStatistics" else NAMES:
            # Long names are cut: a status travels in a header.
            says = f"{begin}{name}"[:500] if begin else ""
            yield ControlCase(rpc, f"model {name[:12]!r} of {len(name)}", for_model(rpc, name), code, (says,))


def _versions() -> Iterator[ControlCase]:
    for rpc in WITH_VERSION:
        for version in BAD_VERSIONS:
            says = (f"'{version}'", "integral value > 0")
            yield ControlCase(rpc, f"version {version[:9]!r}", for_model(rpc, "echo", version), INVALID, says)
        code = INVALID if rpc == "ModelStatistics" else NOT_FOUND
        for version in ABSENT_VERSIONS:
            request, absent = for_model(rpc, "echo", version), (f"'echo' version {version} is not found",)
            if rpc == "ModelReady":
                yield ControlCase(rpc, f"version {version}", request, OK)
            else:
                yield ControlCase(rpc, f"version {version}", request, code, absent)


def _no_messages() -> Iterator[ControlCase]:
    for rpc in ANSWERED:
        says = (f"inference.{rpc}Request",)
        for what, payload in NO_MESSAGES.items():
            yield ControlCase(rpc, what, payload, INVALID, says)
        if rpc not in WITHOUT_FIELDS:
            for what, text in NO_TEXTS.items():
                yield ControlCase(rpc, f"{what} for a text", b"\x0a%c%b" % (len(text), text), INVALID, says)


def _odd_messages() -> Iterator[ControlCase]:
    """Messages that protobuf takes: unknown fields and wrong wire types are passed over."""
    for rpc in WITHOUT_FIELDS:
        yield ControlCase(rpc, "unknown fields", b"\x0a\x04echo\x98\x06\x01\x9b\x06\x08\x01\x9c\x06", OK)
    for rpc, (code, _) in _UNKNOWN.items():
        if rpc not in ("ModelStatistics", "RepositoryModelLoad", "RepositoryModelUnload"):
            says = ("''",) if code is not OK else ()
            yield ControlCase(rpc, "a number for a name", b"\x08\x01", code, says)
            twice = for_model(rpc, "echo") + for_model(rpc, "nobody")
            says = ("'nobody'",) if code is not OK else ()
            yield ControlCase(rpc, "two names, of which the last counts", twice, code, says)


def _repository_names() -> Iterator[ControlCase]:
    says = ("'repository_name'", "not supported")
    for rpc in WITH_REPOSITORY:
        for name in ("models", "..", "/", "\0"):
            fields = {} if rpc == "RepositoryIndex" else {"model_name": "echo"}
            request = request_of(rpc, repository_name=name, **fields)
            yield ControlCase(rpc, f"repository {name!r}", request, UNIMPLEMENTED, says)


# A value of each type that a parameter can have, and none.
_VALUES: Mapping[str, Any] = {
    "bool_param": True,
    "int64_param": 1,
    "string_param": '{"max_batch_size": 4}',
    "bytes_param": b"\0\xff",
}


def _parameters(rpc: str, key: str, *, right: str | None, says: str) -> Iterator[ControlCase]:
    """``key`` with a value of every type but the ``right`` one, and without one."""
    for kind, value in _VALUES.items():
        if kind != right:
            request = request_of(rpc, model_name="echo", parameters={key: pb.ModelRepositoryParameter(**{kind: value})})
            yield ControlCase(rpc, f"{key!r} as {kind}", request, INVALID, (f"'{key}'", says))
    bare = request_of(rpc, model_name="echo", parameters={key: pb.ModelRepositoryParameter()})
    yield ControlCase(rpc, f"{key!r} without value", bare, INVALID, (f"'{key}'", says))


def _control_parameters() -> Iterator[ControlCase]:
    load, unload = "RepositoryModelLoad", "RepositoryModelUnload"
    yield from _parameters(load, "config", right="string_param", says="expected string_param")
    for key in ("file:1/model.py", "file:../../evil.py", "file:/etc/evil", "file:"):
        yield from _parameters(load, key, right="bytes_param", says="expected bytes_param")
    for key in ("colour", "", "CONFIG", "config ", "config\0", "file", "File:1/x", "unload_dependents"):
        yield from _parameters(load, key, right=None, says="unrecognized load parameter")
    yield from _parameters(unload, "unload_dependents", right="bool_param", says="expected bool_param")
    for key in ("colour", "", "UNLOAD_DEPENDENTS", "config"):
        yield from _parameters(unload, key, right=None, says="unrecognized unload parameter")
    for key in ("file:1/x", "file:../../evil.py"):
        parameters = {key: pb.ModelRepositoryParameter(bytes_param=b"")}
        request = request_of(load, model_name="echo", parameters=parameters)
        yield ControlCase(load, f"{key!r}, which is not allowed", request, UNIMPLEMENTED, (key, "--allow-model-upload"))
    for text in _NO_CONFIGURATIONS:
        parameters = {"config": pb.ModelRepositoryParameter(string_param=text)}
        request = request_of(load, model_name="echo", parameters=parameters)
        yield ControlCase(load, f"config {text!r}", request, INVALID, ("load parameter 'config'",))


# No ModelConfig in JSON, or none that can be.
_NO_CONFIGURATIONS = (
    "", "{", "[]", "null", "backend: double", '{"backend": 1}', '{"unknown": 1}', '{"max_batch_size": 4}', "{" * 500,
    '{"backend": "double", "max_batch_size": -1}', '{"backend": "double", "name": "../echo"}', "\0", "{}" * 2,
    '{"backend": "double", "parameters": {"preheat.what": {"string_value": "1"}}}',
)  # fmt: skip


def _others() -> Iterator[ControlCase]:
    failed = ("load failed for model 'broken'", "unknown backend 'warp'")
    yield ControlCase(
        "RepositoryModelLoad", "a broken model", for_model("RepositoryModelLoad", "broken"), INVALID, failed
    )
    for method in SERVICE.methods:
        if method.name in NOT_ANSWERED:
            filled = getattr(pb, method.input_type.name)()
            for field in method.input_type.fields:
                if field.type == field.TYPE_STRING and not field.is_repeated:
                    setattr(filled, field.name, "../echo")
            says = (method.name, "is not supported")
            yield ControlCase(method.name, "with its fields", filled.SerializeToString(), UNIMPLEMENTED, says)
            yield ControlCase(method.name, "garbage", NO_MESSAGES["garbage"], UNIMPLEMENTED, says)
    for rpc in ("ModelDance", "modelinfer", "ModelInfer/", "../ModelInfer", "x" * 4000):
        yield ControlCase(rpc, f"an RPC {rpc[:20]}", b"", UNIMPLEMENTED)


GROUPS = {
    "names": _names,
    "versions": _versions,
    "no messages": _no_messages,
    "odd messages": _odd_messages,
    "repository names": _repository_names,
    "parameters": _control_parameters,
    "others": _others,
}
