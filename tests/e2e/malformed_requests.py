"""Malformed requests, each with the code it must get and what the status text must name."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from tests.e2e.server_process import echo_config
from tests.e2e.wire import Output, Parameters, Tensor, infer_request, without_value

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

# Two inputs of one length, as tokens and their mask have.
_TOKENS = """
backend: "double"
max_batch_size: 8
dynamic_batching { }
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "ids_out" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "mask_out" data_type: TYPE_INT64 dims: [ -1 ] }
parameters { key: "preheat.shape.ids" value { string_value: "sequence" } }
parameters { key: "preheat.shape.mask" value { string_value: "sequence" } }
parameters { key: "preheat.shape.ids_out" value { string_value: "sequence" } }
parameters { key: "preheat.shape.mask_out" value { string_value: "sequence" } }
parameters { key: "preheat.dimension.sequence" value { string_value: "1..512" } }
"""

# Answered by double, whose outputs are its inputs.
MODELS = {
    "echo": echo_config(),
    "tokens": _TOKENS,
    "words": echo_config(datatype="STRING", dims=[2]),
    "half": echo_config(datatype="FP16", dims=[2]),
    "small": echo_config(datatype="INT8", dims=[4]),
    "truth": echo_config(datatype="BOOL", dims=[4]),
    "image": echo_config(datatype="UINT8", dims=[-1, -1], max_batch_size=4),
    "whole": echo_config(datatype="FP32", dims=[2, 2], max_batch_size=0, extra=""),
}

ROW = np.arange(4, dtype=np.int64).tobytes()
_WORDS = b"\x03\0\0\0abc\x00\0\0\0"


def _one(shape: Sequence[int] = (1, 4), *, datatype: str = "INT64", name: str = "INPUT0") -> list[Tensor]:
    return [Tensor(name, datatype, shape)]


def _echo(
    inputs: Sequence[Tensor] = (Tensor("INPUT0", "INT64", [1, 4]),),
    raw: Sequence[bytes] = (ROW,),
    *,
    version: str = "",
    outputs: Sequence[Output] = (),
    parameters: Parameters | None = None,
) -> bytes:
    return infer_request("echo", inputs, raw, version=version, outputs=outputs, parameters=parameters)


def _tokens(ids: Sequence[int], mask: Sequence[int]) -> bytes:
    """A request of two zero tensors of these shapes."""
    raw = [bytes(8 * int(np.prod(shape))) for shape in (ids, mask)]
    return infer_request("tokens", [Tensor("ids", "INT64", ids), Tensor("mask", "INT64", mask)], raw)


def _words(raw: bytes, shape: Sequence[int] = (1, 2)) -> bytes:
    return infer_request("words", _one(shape, datatype="BYTES"), [raw])


def _typed(model: str, datatype: str, shape: Sequence[int], **contents: Sequence[object]) -> bytes:
    return infer_request(model, [Tensor("INPUT0", datatype, shape, contents)])


def _shared(**parameters: str | int) -> bytes:
    return infer_request("echo", [Tensor("INPUT0", "INT64", [1, 4], parameters=parameters)])


def _version(text: str) -> bytes:
    return _echo(version=text)


# For each model a request that it answers, and the raw outputs.
VALID = {
    "echo": (_echo(), [ROW]),
    "tokens": (_tokens([1, 3], [1, 3]), [bytes(24), bytes(24)]),
    "words": (_words(_WORDS), [_WORDS]),
    "half": (infer_request("half", _one((1, 2), datatype="FP16"), [b"\0<\0@"]), [b"\0<\0@"]),
    "small": (_typed("small", "INT8", [1, 4], int_contents=[1, -1, 127, -128]), [b"\x01\xff\x7f\x80"]),
    "truth": (_typed("truth", "BOOL", [1, 4], bool_contents=[True, False, True, True]), [b"\1\0\1\1"]),
    "image": (infer_request("image", _one((1, 2, 3), datatype="UINT8"), [b"sixsix"]), [b"sixsix"]),
    "whole": (_typed("whole", "FP32", [2, 2], fp32_contents=[0, 0, 0, 2]), [bytes(15) + b"@"]),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One mistake."""

    what: str
    request: bytes
    code: grpc.StatusCode
    fragments: tuple[str, ...]


def _case(what: str, request: bytes, *fragments: str, code: grpc.StatusCode = INVALID) -> Case:
    return Case(what, request, code, fragments)


def _listed(*cases: Case) -> tuple[Case, ...]:
    names = [case.what for case in cases]
    assert len(set(names)) == len(names)
    return cases


_MODEL_CASES = _listed(
    _case("empty message", b"", "''", code=NOT_FOUND),
    _case("unknown model", infer_request("nobody", _one(), [ROW]), "'nobody'", code=NOT_FOUND),
    _case("model name that is a path", infer_request("../echo", _one(), [ROW]), "'../echo'", code=NOT_FOUND),
    _case("model name of a megabyte", infer_request("m" * 2**20, _one(), [ROW]), "unknown model", code=NOT_FOUND),
    _case("model name beyond ASCII", infer_request("naïve\n😀" * 200, _one(), [ROW]), "'naïve", code=NOT_FOUND),
    _case("unknown version", _version("2"), "'echo'", "version 2", code=NOT_FOUND),
    _case("enormous version", _version("9" * 18), "9" * 18, code=NOT_FOUND),
    _case("version longer than any number", _version("9" * 400), "999"),
    _case("version that is a word", _version("x"), "'x'", "integral value > 0"),
    _case("negative version", _version("-1"), "'-1'", "integral value > 0"),
    _case("version 0", _version("0"), "'0'", "integral value > 0"),
    _case("version with a sign", _version("+1"), "'+1'"),
    _case("version with a space", _version(" 1"), "' 1'"),
    _case("version in another script", _version("\u0661"), "'\u0661'"),
    _case("reserved parameter", _echo(parameters={"triton_final_response": True}), "'triton_final_response'"),
    _case("parameter without a value", without_value(_echo(), "colour"), "'colour'"),
)

_OUTPUT_CASES = _listed(
    _case("unknown output", _echo(outputs=[Output("OUTPUT9")]), "'OUTPUT9'", "OUTPUT0"),
    _case("nameless output", _echo(outputs=[Output("")]), "output ''"),
    _case("duplicate output", _echo(outputs=[Output("OUTPUT0"), Output("OUTPUT0")]), "'OUTPUT0'", "already"),
    _case(
        "classification", _echo(outputs=[Output("OUTPUT0", {"classification": 3})]), "'OUTPUT0'", "classification",
        code=UNIMPLEMENTED,
    ),
    _case(
        "output in shared memory",
        _echo(outputs=[Output("OUTPUT0", {"shared_memory_region": "r", "shared_memory_byte_size": 32})]),
        "shared memory", "--allow-client-shm", code=UNIMPLEMENTED,
    ),
    _case(
        "output in shared memory of no size", _echo(outputs=[Output("OUTPUT0", {"shared_memory_region": "r"})]),
        "'OUTPUT0'", "shared_memory_byte_size",
    ),
)  # fmt: skip

_INPUT_CASES = _listed(
    _case("no input", _echo([], []), "expected 1 inputs but got 0", "'INPUT0'"),
    _case("missing input", infer_request("tokens", [Tensor("ids", "INT64", [1, 4])], [ROW]), "missing", "'mask'"),
    _case("extra input", _echo([*_one(), Tensor("INPUT1", "INT64", [1, 4])], [ROW, ROW]), "got 2", "'INPUT1'"),
    _case("misnamed input", _echo(_one(name="input0")), "'input0'", "'INPUT0'"),
    _case("nameless input", _echo(_one(name="")), "''", "'INPUT0'"),
    _case(
        "duplicate input",
        infer_request("tokens", [Tensor("ids", "INT64", [1, 4]), Tensor("ids", "INT64", [1, 4])], [ROW, ROW]),
        "'ids'",
    ),
    _case(
        "duplicate input beside all",
        infer_request("tokens", [Tensor(name, "INT64", [1, 4]) for name in ("ids", "mask", "ids")], [ROW] * 3),
        "'ids'",
    ),
    _case("wrong datatype", _echo(_one(datatype="FP64")), "'INPUT0'", "'FP64'", "'INT64'"),
    _case("unknown datatype", _echo(_one(datatype="INT65")), "'INPUT0'", "'INT65'", "'INT64'"),
    _case("datatype in lower case", _echo(_one(datatype="int64")), "'int64'", "'INT64'"),
    _case("no datatype", _echo(_one(datatype="")), "''", "'INT64'"),
    _case("input in shared memory", _shared(shared_memory_region="r", shared_memory_byte_size=32),
          "shared memory", "--allow-client-shm", code=UNIMPLEMENTED),
)  # fmt: skip

_SHAPE_CASES = _listed(
    _case("no shape", _echo(_one([])), "'INPUT0'", "[-1,4]", "[]"),
    _case("rank too low", _echo(_one([4])), "'INPUT0'", "[-1,4]", "[4]"),
    _case("rank too high", _echo(_one([1, 4, 1])), "'INPUT0'", "[-1,4]", "[1,4,1]"),
    _case("rank of a thousand", _echo(_one([1] * 1000)), "'INPUT0'", "at most 32"),
    _case("wrong fixed dimension", _echo(_one([1, 5])), "'INPUT0'", "[-1,4]", "[1,5]"),
    _case("negative dimension", _echo(_one([1, -4])), "'INPUT0'", "[1,-4]"),
    _case("negative batch", _echo(_one([-1, 4])), "'INPUT0'", "[-1,4]"),
    _case("two negative dimensions", _echo(_one([-1, -4])), "'INPUT0'", "[-1,-4]"),
    _case("batch of 0", _echo(_one([0, 4]), [b""]), "batch-size", "8", "'echo'", "0"),
    _case("batch above the maximum", _echo(_one([9, 4]), [ROW * 9]), "batch-size must be <= 8", "'echo'", "9"),
    _case("batches that differ", _tokens([2, 3], [1, 3]), "'mask'", "batch size"),
    _case("lengths that differ", _tokens([1, 3], [1, 4]), "'ids'", "'mask'", "'sequence'", "3", "4"),
    _case("length of 0", _tokens([1, 0], [1, 0]), "'ids'", "sequence(1..512)", "[1,0]"),
    _case("length above its maximum", _tokens([1, 513], [1, 513]), "'ids'", "sequence(1..512)", "[1,513]"),
    _case("product beyond 64 bits", infer_request("image", _one([1, 2**32, 2**32], datatype="UINT8"), [b""]),
          "'INPUT0'", str(2**32)),
    _case("product beyond 63 bits", infer_request("image", _one([2, 2**31, 2**31], datatype="UINT8"), [b""]),
          "'INPUT0'", str(2**31)),
    _case("largest dimensions", infer_request("image", _one([1, 2**63 - 1, 2**63 - 1], datatype="UINT8"), [b"x"]),
          "'INPUT0'", str(2**63 - 1)),
    _case("size of a terabyte", infer_request("image", _one([1, 2**20, 2**20], datatype="UINT8"), [b"x"]), "'INPUT0'"),
    _case("shape of a model without batch", infer_request("whole", _one([1, 2, 2], datatype="FP32"), [bytes(16)]),
          "'INPUT0'", "[2,2]", "[1,2,2]"),
)  # fmt: skip

_PAYLOAD_CASES = _listed(
    _case("payload too small", _echo(raw=[ROW[:-1]]), "'INPUT0'", "32", "31"),
    _case("payload too large", _echo(raw=[ROW + b"\0"]), "'INPUT0'", "32", "33"),
    _case("payload of another batch", _echo(raw=[ROW * 2]), "'INPUT0'", "32", "64"),
    _case("empty payload", _echo(raw=[b""]), "'INPUT0'", "32"),
    _case("no payload", _echo(raw=[]), "'INPUT0'", "data"),
    _case("too few payloads", infer_request("tokens", [Tensor(name, "INT64", [1, 4]) for name in ("ids", "mask")],
          [ROW]), "'mask'", "data"),
    _case("too many payloads", _echo(raw=[ROW, ROW]), "2 entries for 1 inputs", "'echo'"),
    _case("payloads without inputs", _echo([], [ROW]), "1", "'echo'"),
    _case("raw and typed at once", _echo([Tensor("INPUT0", "INT64", [1, 4], {"int64_contents": [1, 2, 3, 4]})]),
          "'INPUT0'", "raw_input_contents"),
    _case("raw for one and typed for the other", infer_request("tokens", [
        Tensor("ids", "INT64", [1, 4]), Tensor("mask", "INT64", [1, 4], {"int64_contents": [1, 2, 3, 4]})], [ROW]),
          "'mask'", "raw_input_contents"),
    _case("too few typed values", _typed("echo", "INT64", [1, 4], int64_contents=[1, 2, 3]), "'INPUT0'", "4", "3"),
    _case("too many typed values", _typed("echo", "INT64", [1, 4], int64_contents=[1] * 5), "'INPUT0'", "4", "5"),
    _case("typed values in the wrong field", _typed("echo", "INT64", [1, 4], int_contents=[1, 2, 3, 4]), "'INPUT0'",
          "int_contents", "int64_contents"),
    _case("typed values in two fields", _typed("echo", "INT64", [1, 4], int64_contents=[1] * 4, fp32_contents=[1]),
          "'INPUT0'", "fp32_contents"),
    _case("typed values of FP16", _typed("half", "FP16", [1, 2], fp32_contents=[1, 2]), "'INPUT0'", "FP16",
          "raw_input_contents"),
    _case("typed values of an unknown datatype", _typed("echo", "INT65", [1, 4], int64_contents=[1] * 4),
          "'INPUT0'", "INT65"),
    _case("text cut within its length", _words(b"\x03\0\0\0abc\x00\0"), "'INPUT0'", "element 1"),
    _case("text cut within an element", _words(b"\x03\0\0\0ab"), "'INPUT0'", "element 0", "3", "2"),
    _case("text announced over its end", _words(b"\x00\0\0\0\xff\xff\xff\xffx"), "'INPUT0'", "element 1", "4294967295"),
    _case("too few texts", _words(b"\x03\0\0\0abc"), "'INPUT0'", "2", "1"),
    _case("too many texts", _words(_WORDS + b"\x00\0\0\0"), "'INPUT0'", "expected 2 elements, got more"),
    _case("no text", _words(b""), "'INPUT0'", "2", "0"),
)  # fmt: skip

CASES = (*_MODEL_CASES, *_OUTPUT_CASES, *_INPUT_CASES, *_SHAPE_CASES, *_PAYLOAD_CASES)
