"""What can be wrong with a request, made of any model's correct one: by groups, each with what the refusal must say."""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import grpc
from tests.e2e.malformed_backends import FIELDS, LONGEST, MAX_BATCH_SIZE, Subject
from tests.e2e.malformed_requests import INVALID, NOT_FOUND, UNIMPLEMENTED, Case
from tests.e2e.wire import Output, Parameters, Tensor, infer_request, without_value

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
)  # fmt: skip
_NO_DATATYPES = ("", "INT65", "int64", "TYPE_FP32", "STRING", "FP32\0")
_LARGEST = 2**63 - 1


def _case(what: str, request: bytes, *fragments: str, code: grpc.StatusCode = INVALID) -> Case:
    return Case(what, request, code, fragments)


def _request(
    subject: Subject,
    inputs: Sequence[Tensor] | None = None,
    raw: Sequence[bytes] | None = None,
    *,
    version: str = "",
    outputs: Sequence[Output] = (),
    parameters: Parameters | None = None,
) -> bytes:
    """The correct request but for what is given."""
    return infer_request(
        subject.name,
        subject.tensors() if inputs is None else inputs,
        subject.raw() if raw is None else raw,
        version=version,
        outputs=outputs,
        parameters=parameters,
    )


def _changed(subject: Subject, position: int, tensor: Tensor, data: bytes | None = None) -> bytes:
    """The correct request with another input, and perhaps other data, at ``position``."""
    tensors, raw = subject.tensors(), subject.raw()
    tensors[position] = tensor
    if data is not None:
        raw[position] = data
    return _request(subject, tensors, raw)


def _names(subject: Subject) -> Iterator[Case]:
    model, (first, *others), raw = f"'{subject.name}'", subject.tensors(), subject.raw()
    extra = Tensor("colour", first.datatype, first.shape)
    yield _case("no inputs", _request(subject, [], []), model, f"'{first.name}'", "got 0")
    yield _case("an unknown input more", _request(subject, [first, *others, extra], [*raw, raw[0]]), model, "'colour'")
    for name in ("", first.name.upper(), first.name + "\0", f" {first.name}", "../" + first.name, "é" * 300):
        yield _case(
            f"an input called {name[:20]!r}", _changed(subject, 0, replace(first, name=name)), model,
            f"'{name[:50]}"[:200], f"'{first.name}'" if len(name) < 100 else "",
        )  # fmt: skip
    twice = _request(subject, [first, *others, first], [*raw, raw[0]])
    yield _case("an input twice", twice, model, f"'{first.name}'")
    if others:
        alone = _request(subject, others, raw[1:])
        yield _case("an input missing", alone, model, "missing", f"'{first.name}'")
        yield _case("an input in place of another", _changed(subject, 1, first), model, f"'{first.name}'")
    for name in subject.optional:
        only = Tensor(name, first.datatype, first.shape)
        yield _case("only what is optional", _request(subject, [only]), model, "missing", f"'{first.name}'")
        beside = _request(subject, [first, replace(first, name=name + "s")], [*raw, raw[0]])
        yield _case("an unknown optional input", beside, model, f"'{name}s'", f"'{name}'")
        bad = _request(subject, [first, replace(only, shape=[9, 9, 9])], [*raw, raw[0]])
        yield _case("an optional input of a wrong shape", bad, model, f"'{name}'", "[9,9,9]")


_REGION: Mapping[str, str | int] = {"shared_memory_region": "r", "shared_memory_byte_size": 4}


def _outputs(subject: Subject) -> Iterator[Case]:
    model, (output, *_) = f"'{subject.name}'", subject.outputs
    for name in ("", "colour", output.upper(), output + "\0", next(iter(subject.inputs))):
        yield _case(f"an output called {name!r}", _request(subject, outputs=[Output(name)]), model, f"'{name}'", output)
    twice = _request(subject, outputs=[Output(output), Output(output)])
    yield _case("an output twice", twice, f"'{output}'", "already exists")
    classified = _request(subject, outputs=[Output(output, {"classification": 2})])
    yield _case("classification of an output", classified, f"'{output}'", "classification", code=UNIMPLEMENTED)
    placed = _request(subject, outputs=[Output(output, _REGION)])
    yield _case("an output in shared memory", placed, "shared memory", "--allow-client-shm", code=UNIMPLEMENTED)
    sizeless = _request(subject, outputs=[Output(output, {"shared_memory_region": "r"})])
    yield _case("shared memory of no size", sizeless, f"'{output}'", "shared_memory_byte_size")
    first = subject.tensors()[0]
    shared = _changed(subject, 0, replace(first, parameters=_REGION))
    yield _case("an input in shared memory too", shared, f"raw_input_contents has {len(subject.tensors())} entries")


def _datatypes(subject: Subject) -> Iterator[Case]:
    for position, tensor in enumerate(subject.tensors()):
        for datatype in (*DATATYPES, *_NO_DATATYPES):
            if datatype != tensor.datatype:
                request = _changed(subject, position, replace(tensor, datatype=datatype))
                says = (f"'{tensor.name}'", f"'{datatype}'", f"'{tensor.datatype}'")
                yield _case(f"{tensor.name} of {datatype!r}", request, f"'{subject.name}'", *says)


def _shapes(subject: Subject) -> Iterator[Case]:
    for position, tensor in enumerate(subject.tensors()):
        *leading, last = tensor.shape
        shapes = {
            "no shape": [], "a rank less": leading, "a rank more": [*tensor.shape, 1], "32 ranks": [1] * 32,
            "a negative size": [*leading, -last], "the least size": [*leading, -(2**63)], "size 0": [*leading, 0],
            "the largest size": [*leading, _LARGEST], "a terabyte": [*leading, 2**40],
            "one too long": [*leading, LONGEST + 1 if subject.varies else last + 1],
        }  # fmt: skip
        for what, shape in shapes.items():
            request = _changed(subject, position, replace(tensor, shape=shape))
            yield _case(f"{tensor.name}: {what}", request, f"'{subject.name}'", f"'{tensor.name}'")
        for sizes in ([_LARGEST] * len(tensor.shape), [2**32] * len(tensor.shape), [-1] * len(tensor.shape)):
            request = _changed(subject, position, replace(tensor, shape=sizes))
            yield _case(f"{tensor.name} of {sizes}", request, f"'{subject.name}'", str(sizes[0]))
        deep = _changed(subject, position, replace(tensor, shape=[1] * 33))
        yield _case(f"{tensor.name}: 33 ranks", deep, f"'{subject.name}'", f"'{tensor.name}'", "at most 32")


def _batches(subject: Subject) -> Iterator[Case]:
    if not subject.batches:
        first = subject.tensors()[0]
        batched = _changed(subject, 0, replace(first, shape=[1, *first.shape]))
        yield _case("a batch without a batch axis", batched, f"'{first.name}'", "[2,2]", "[1,2,2]")
        return
    model = f"'{subject.name}'"
    for rows in (0, MAX_BATCH_SIZE + 1, 1000, _LARGEST):
        tensors = [replace(each, shape=[rows, *each.shape[1:]]) for each in subject.tensors()]
        yield _case(f"{rows} rows", _request(subject, tensors), model, "batch-size", str(MAX_BATCH_SIZE), str(rows))
    for position, tensor in list(enumerate(subject.tensors()))[1:]:
        other = _changed(
            subject, position, replace(tensor, shape=[3, *tensor.shape[1:]]), bytes(3 * 8 * tensor.shape[1])
        )
        yield _case(f"{tensor.name} of other rows", other, model, f"'{tensor.name}'", "batch size does not match")
        longer = [tensor.shape[0], tensor.shape[1] + 1]
        apart = _changed(subject, position, replace(tensor, shape=longer), bytes(8 * longer[0] * longer[1]))
        yield _case(
            f"{tensor.name} of another length",
            apart,
            model,
            f"'{tensor.name}'",
            "must agree in dimension",
            str(longer[1]),
        )


def _payloads(subject: Subject) -> Iterator[Case]:
    model, tensors, raw = f"'{subject.name}'", subject.tensors(), subject.raw()
    for position, tensor in enumerate(tensors):
        damaged = {
            "cut": raw[position][:-1],
            "too long": raw[position] + b"\1",
            "none": b"",
            "twice": raw[position] * 2,
        }
        damaged |= {"cut in the middle": raw[position][: len(raw[position]) // 2]}
        for what, data in damaged.items():
            request = _changed(subject, position, tensor, data)
            yield _case(f"{tensor.name}: {what}", request, model, f"'{tensor.name}'", "byte size mismatch")
        yield from _values(subject, position)
    yield _case("no payload", _request(subject, raw=[]), model, f"'{tensors[0].name}'", "unable to find data")
    yield _case("one payload more", _request(subject, raw=[*raw, b""]), model, f"{len(raw) + 1} entries")
    yield _case("payloads without inputs", _request(subject, []), model, f"{len(raw)} entries for 0")
    if len(raw) > 1:
        fewer = _request(subject, raw=raw[:-1])
        yield _case("one payload less", fewer, model, f"'{tensors[-1].name}'", "unable to find data")


def _values(subject: Subject, position: int) -> Iterator[Case]:
    """Payloads of the right size that hold what cannot be."""
    tensor, raw = subject.tensors()[position], subject.raw()[position]
    name = f"'{tensor.name}'"
    if tensor.datatype == "BOOL":
        for place, value in ((0, 2), (len(raw) - 1, 255), (2, 128), (1, 16)):
            data = raw[:place] + bytes([value]) + raw[place + 1 :]
            yield _case(f"{value} for a BOOL", _changed(subject, position, tensor, data), name, "must be 0 or 1")
    if tensor.datatype == "BYTES":
        count = subject.inputs[tensor.name].size
        empty = struct.pack("<I", 0)
        framings = {
            "too few elements": (empty * (count - 1), f"expected {count} elements, got {count - 1}"),
            "too many elements": (empty * (count + 1), f"expected {count} elements, got more"),
            "an element of 4 GiB": (empty * (count - 1) + b"\xff\xff\xff\xff", "4294967295 bytes announced, 0 there"),
            "an element of 2 GiB": (b"\0\0\0\x80" + empty * (count - 1), "2147483648 bytes announced"),
            "an element over its end": (empty * (count - 1) + b"\2\0\0\0x", "2 bytes announced, 1 there"),
            "a length over its end": (empty * (count - 1) + b"\0\0\0", f"element {count - 1}: its length is cut off"),
            "big-endian lengths": (b"\0\0\0\1x" * count, "16777216 bytes announced"),
            "a bare string": (b"hello, world", "announced"),
        }
        for what, (data, says) in framings.items():
            yield _case(what, _changed(subject, position, tensor, data), name, says)


def _typed(subject: Subject) -> Iterator[Case]:
    model, (first, *others) = f"'{subject.name}'", subject.typed()
    name = f"'{first.name}'"
    both = _request(subject, [replace(first, contents={"fp32_contents": [1]}), *others])
    yield _case("raw and typed", both, model, name, "raw_input_contents")
    bare = replace(first, contents=None)
    yield _case("neither raw nor typed", _request(subject, [bare, *others], []), model, name, "unable to find data")
    right = FIELDS.get(first.datatype)
    for field in sorted({*FIELDS.values(), "uint_contents", "uint64_contents", "fp64_contents"} - {right}):
        value: object = b"1" if field == "bytes_contents" else 1
        wrong = replace(first, contents={field: [value] * _size(first)})
        says = (field, right) if right else (first.datatype, "raw_input_contents")
        yield _case(f"in {field}", _request(subject, [wrong, *others], []), model, name, *says)
        if right and first.contents:
            two = replace(first, contents={**first.contents, field: [value]})
            yield _case(f"in {field} as well", _request(subject, [two, *others], []), model, name, field)
    if right and first.contents:
        values = first.contents[right]
        for what, given in {"less": values[:-1], "more": [*values, values[0]], "one": values[:1]}.items():
            counted = replace(first, contents={right: given})
            count = f"Expected {len(values)}, got {len(given)}"
            yield _case(f"{what} typed values", _request(subject, [counted, *others], []), model, name, count)


def _size(tensor: Tensor) -> int:
    rows, columns = tensor.shape
    return rows * columns


def _circumstances(subject: Subject) -> Iterator[Case]:
    """What is beside the tensors."""
    model = f"'{subject.name}'"
    for key in ("triton_final_response", "triton_", "triton_enable_empty_final_response"):
        yield _case(f"parameter {key}", _request(subject, parameters={key: "yes"}), f"'{key}'", "reserved")
    for key in ("priority", "timeout"):
        for value in ("1", "", True, False, -1, -(2**63), 1.0, float("nan")):
            request = _request(subject, parameters={key: value})
            yield _case(f"{key} {value!r}", request, f"'{key}'", repr(value), "must be a whole number")
        unset = without_value(_request(subject), key)
        yield _case(f"{key} without a value", unset, f"'{key}'", "no value")
    yield _case("a parameter without a value", without_value(_request(subject), "colour"), "'colour'", "no value")
    for version in ("2", "9" * 18):
        yield _case(
            f"version {version}", _request(subject, version=version), model, f"version {version}", code=NOT_FOUND
        )
    for version in ("x", "-1", "0", "1.0", " 1", "1 ", "+1", "1\0", "0x1", "\u0661", "9" * 40, "latest"):
        yield _case(f"version {version!r}", _request(subject, version=version), f"'{version}'", "integral value > 0")


GROUPS: dict[str, Callable[[Subject], Iterator[Case]]] = {
    "names": _names,
    "outputs": _outputs,
    "datatypes": _datatypes,
    "shapes": _shapes,
    "batches": _batches,
    "payloads": _payloads,
    "typed contents": _typed,
    "circumstances": _circumstances,
}
