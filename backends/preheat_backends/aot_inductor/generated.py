"""What the C++ that torch generated for a package tells of the package: it travels in the archive, as text.

It has the checks of each input that the package makes if ``AOTI_RUNTIME_CHECK_INPUTS`` is set: type, fixed sizes, and
the bounds of the others, and which must be equal. It does not have the tensors' names, nor anything of the outputs
but their number. Its form is torch's to change; what is not found is not told.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from preheat.backend import Dimension
from preheat.tensors import DataType
from preheat_backends.torch_tensors import datatype_of

_CHECK = re.compile(r"static void check_input_(\d+)\(")
_DTYPE = re.compile(r"_expected_dtype = aoti_torch_dtype_(\w+)\(\)")
_NAME = re.compile(r"ConstantHandle (\w+) = ConstantHandle\(input_handles")
_TIES = re.compile(r"assert_size_stride\((\w+), \{([^}]*)\}, .*?\"input\"\)")
_SYMBOL = re.compile(r"[su]\d+")
_FIXED = re.compile(r"if \((\d+)L* != \w+_size\[(\d+)\]\)")
_BOUND = re.compile(r"if \(\w+_size\[(\d+)\] ([<>]) (\d+)L*\)")
_STRIDE = re.compile(r"_stride\[(\d+)\]\)")
_COUNTS = re.compile(r"AOTInductorModelBase\((\d+),\s*(\d+),")
_THROWN = re.compile(r"\b(?:AOTI_)?TORCH_CHECK\(")
_PARALLEL = "#pragma omp parallel"
_PARALLEL_AT_WILL = re.compile(r"#pragma omp parallel *$", re.MULTILINE)
_PARALLEL_BY = re.compile(r"#pragma omp parallel num_threads\((\d+)\)")
_ROOM_BY_THREAD = re.compile(r"_arr\[tid\]")
_ROOM = re.compile(r"_arr(?:\[|\s*=\s*std::make_unique<[^;]*?>\()(\d+)[\])];")


@dataclass(frozen=True, slots=True)
class CheckedInput:
    """What a package's own check of an input says. None is what it does not say; ``shape`` is whole.

    Axes of one name must have equal sizes; the names are torch's.
    """

    datatype: DataType | None
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class CallSpec:
    """How arguments and results are nested, as torch's pytree writes it."""

    inputs: str
    outputs: str


def checked_inputs(wrapper: str) -> tuple[CheckedInput, ...] | None:
    """The inputs, in the order of the call; None if the source has no checks of them."""
    parts = _CHECK.split(wrapper)
    bodies = [body.partition("AOTI_NOINLINE static")[0] for body in parts[2::2]]
    symbols = {name: [size.strip() for size in sizes.split(",")] for name, sizes in _TIES.findall(wrapper)}
    return tuple(_read_check(body, symbols) for body in bodies) or None


def call_spec(wrapper: str) -> CallSpec | None:
    """How the package is called; None if the source does not say."""
    inputs, outputs = _raw_text(wrapper, "in_spec_"), _raw_text(wrapper, "out_spec_")
    return CallSpec(inputs, outputs) if inputs and outputs else None


def tensor_counts(wrapper: str) -> tuple[int, int] | None:
    """How many inputs and outputs there are; None if the source does not say."""
    found = _COUNTS.search(wrapper)
    return (int(found[1]), int(found[2])) if found else None


def ends_process(kernels: str) -> bool:
    """Whether a failed check in a kernel, as of an index out of range, may end the process.

    What is thrown within an OpenMP region cannot leave it.
    """
    return _THROWN.search(kernels) is not None and _PARALLEL in kernels


def most_threads(kernels: str) -> int | None:
    """How many threads the kernels have room for; None for as many as there are.

    torch 2.13 has regions run on all threads there are where it compiled with as many threads as the machine has
    processors, and has room in them for that number: with more, they write beyond it.
    """
    if _PARALLEL_AT_WILL.search(kernels) is None or _ROOM_BY_THREAD.search(kernels) is None:
        return None
    return min((int(room) for room in _ROOM.findall(kernels)), default=None)


def fixed_threads(kernels: str) -> int | None:
    """The number of threads that kernels run on whatever they are told; None if they do as they are told."""
    return max((int(number) for number in _PARALLEL_BY.findall(kernels)), default=None)


def _read_check(body: str, symbols: Mapping[str, Sequence[str]]) -> CheckedInput:
    handle = _NAME.search(body)
    shape = _read_shape(body, symbols.get(handle[1], ()) if handle else ())
    name = _DTYPE.search(body)
    dtype = getattr(torch, name[1], None) if name else None
    return CheckedInput(datatype_of(dtype) if isinstance(dtype, torch.dtype) else None, shape)


def _read_shape(body: str, symbols: Sequence[str]) -> tuple[Dimension, ...]:
    fixed = {int(axis): int(size) for size, axis in _FIXED.findall(body)}
    bounds = {(int(axis), sign): int(bound) for axis, sign, bound in _BOUND.findall(body)}
    axes = {*fixed, *(axis for axis, _ in bounds), *map(int, _STRIDE.findall(body))}
    # Of dense tensors the last axis's stride is always checked, so none is missed at the end.
    rank = max(axes, default=-1) + 1
    names = [symbol if _SYMBOL.fullmatch(symbol) else None for symbol in symbols]
    names += [None] * (rank - len(names))
    return tuple(_axis(axis, names[axis], fixed, bounds) for axis in range(rank))


def _axis(axis: int, name: str | None, fixed: Mapping[int, int], bounds: Mapping[tuple[int, str], int]) -> Dimension:
    if axis in fixed:
        return Dimension.fixed(fixed[axis])
    return Dimension(name, minimum=bounds.get((axis, "<"), 0), maximum=bounds.get((axis, ">")))


def _raw_text(wrapper: str, name: str) -> str:
    """A member that is set to raw string literals, which are one text."""
    found = re.search(rf"\b{name} =\s*((?:R\"\(.*?\)\"\s*)+);", wrapper, re.DOTALL)
    return "".join(_literals(found[1])) if found else ""


def _literals(text: str) -> Iterator[str]:
    return (literal[1] for literal in re.finditer(r"R\"\((.*?)\)\"", text, re.DOTALL))
