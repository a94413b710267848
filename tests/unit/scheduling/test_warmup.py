"""What is run before READY: every bucket, largest first, with inputs the signature allows, then the samples."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import echo_signature, request, spec, tensor

from preheat.backend import Buckets, Dimension, Signature
from preheat.errors import InvalidConfig
from preheat.scheduling.admission import Gate
from preheat.scheduling.padding import Padding
from preheat.scheduling.warmup import Sample, WarmupBatch, least_size, plan_samples, plan_warmup, smallest_row
from preheat.tensors import DataType, Tensors

SAMPLE = Sample("typical", {"x": np.array([3, 4], np.float32)}, rows=2, count=3)
LENGTH, WIDTH = Dimension("length", 1, 64), Dimension("width", 1, 64)
ROWS = Buckets((1, 2))


def labels(batches: Sequence[WarmupBatch]) -> list[str]:
    return [batch.label for batch in batches]


def signature(*inputs: int | Dimension, max_batch_size: int = 2) -> Signature:
    """An input ``x`` of these dimensions, and an optional one like it."""
    return Signature((spec("x", *inputs), spec("extra", *inputs, optional=True)), (spec("y", 1),), max_batch_size)


def inputs_of(batch: WarmupBatch) -> Tensors:
    """One row of a batch, without the batch axis, once that all are alike is seen."""
    assert all(part is batch.parts[0] for part in batch.parts)
    return {name: array[0] for name, array in batch.parts[0].items()}


def test_a_model_without_a_batch_axis_runs_one_request() -> None:
    (batch,) = plan_warmup(echo_signature(max_batch_size=0), Buckets(), ())
    assert (batch.label, [part["x"].shape for part in batch.parts]) == ("one request", [(2,)])
    assert batch.key == (("x", (2,)),)


def test_every_bucket_is_run_largest_first_as_requests_of_one_row() -> None:
    batches = plan_warmup(echo_signature(), Buckets((1, 2, 8)), ())
    assert labels(batches) == ["batch 8", "batch 2", "batch 1"]
    assert [[part["x"].shape for part in batch.parts] for batch in batches] == [[(1, 2)] * 8, [(1, 2)] * 2, [(1, 2)]]


def test_samples_give_the_row_of_every_bucket_and_then_run_as_configured() -> None:
    batches = plan_warmup(echo_signature(), ROWS, (SAMPLE,))
    assert labels(batches) == ["batch 2", "batch 1", *["sample 'typical'"] * 3]
    assert all(part["x"].tolist() == [[3, 4]] for batch in batches for part in batch.parts)
    assert [len(batch.parts) for batch in batches[2:]] == [2, 2, 2]
    assert [batch.key for batch in batches[2:]] == [None] * 3


def test_a_sample_of_a_model_without_a_batch_axis_is_run_as_it_is() -> None:
    batches = plan_samples(echo_signature(max_batch_size=0), (SAMPLE,))
    assert [[part["x"].tolist() for part in batch.parts] for batch in batches] == [[[3, 4]]] * 3


def test_every_combination_of_rows_sizes_and_optional_inputs_is_run_largest_first() -> None:
    buckets = Buckets((1, 2), {"length": (4, 8), "width": (3, 5)})
    batches = plan_warmup(signature(LENGTH, WIDTH), buckets, ())
    assert labels(batches) == [
        f"batch {rows}, length {length}, width {width}{extra}"
        for rows, length, width, extra in product((2, 1), (8, 4), (5, 3), ("", ", with extra"))
    ]
    assert batches[0].key == (("x", (8, 5)),)
    assert batches[1].key == (("extra", (8, 5)), ("x", (8, 5)))
    assert [array.shape for array in inputs_of(batches[-1]).values()] == [(4, 3)] * 2


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Dimension(), [2, 1]),
        (Dimension(minimum=1, maximum=1, multiple_of=1), [None]),
        (Dimension(minimum=3), [4, 3]),
        (Dimension(minimum=3, multiple_of=4), [8, 4]),
        (Dimension(minimum=3, maximum=7, multiple_of=4), [4]),
        (Dimension("length", 0, 1), [1]),
    ],
)
def test_a_varying_dimension_without_buckets_takes_its_two_smallest_sizes(
    axis: Dimension, expected: Sequence[int | None]
) -> None:
    batches = plan_warmup(echo_signature(axis, max_batch_size=1), Buckets((1,)), ())
    name = axis.name or "x[0]"
    assert labels(batches) == ["batch 1" if size is None else f"batch 1, {name} {size}" for size in expected]
    assert [inputs_of(batch)["x"].shape for batch in batches] == [(size or 1,) for size in expected]


def test_axes_of_one_name_vary_together_and_those_without_one_alone() -> None:
    tied = Signature((spec("a", LENGTH), spec("b", LENGTH, -1)), (spec("y", 1),))
    assert labels(plan_warmup(tied, Buckets(), ())) == [
        f"length {length}, b[1] {size}" for length in (2, 1) for size in (2, 1)
    ]


def test_a_sample_gives_its_sizes_to_dimensions_without_buckets() -> None:
    sample = Sample("long", {"x": np.full((7, 5), 3, np.float32)}, rows=1, count=1)
    plan = plan_warmup(echo_signature(LENGTH, -1), ROWS, (sample,))
    assert labels(plan) == ["batch 2, length 7, x[1] 5", "batch 1, length 7, x[1] 5", "sample 'long'"]
    assert all(inputs_of(batch)["x"].shape == (7, 5) for batch in plan)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_sample_gives_its_sizes_also_where_an_input_that_it_leaves_out_shares_them(order: slice) -> None:
    made = signature(LENGTH)
    made = Signature(made.inputs[order], made.outputs, made.max_batch_size)
    sample = Sample("long", {"x": np.full(7, 3, np.float32)}, rows=1, count=1)
    plan = plan_warmup(made, Buckets((1,)), (sample,))
    assert labels(plan) == ["batch 1, length 7", "batch 1, length 7, with extra", "sample 'long'"]
    assert [inputs_of(batch)["x"].tolist() for batch in plan] == [[3] * 7, [0] * 7, [3] * 7]


def test_a_sample_is_run_in_every_size_bucket_that_holds_it_and_zeros_in_the_others() -> None:
    sample = Sample("short", {"x": np.full(3, 9, np.float32)}, rows=1, count=1)
    plan = plan_warmup(echo_signature(LENGTH), Buckets((1,), {"length": (2, 4, 8)}), (sample,))
    assert [(batch.key, inputs_of(batch)["x"].tolist()) for batch in plan] == [
        ((("x", (8,)),), [9, 9, 9]),
        ((("x", (4,)),), [9, 9, 9]),
        ((("x", (2,)),), [0, 0]),
        (None, [9, 9, 9]),
    ]


@pytest.mark.parametrize(("optional", "sets"), [(0, 1), (1, 2), (2, 4), (4, 16), (5, 7), (9, 11)])
def test_with_many_optional_inputs_only_none_each_one_and_all_of_them_are_run(optional: int, sets: int) -> None:
    specs = (spec("x", 2), *(spec(f"extra {k}", 2, optional=True) for k in range(optional)))
    plan = plan_warmup(Signature(specs, (spec("y", 1),)), Buckets(), ())
    present = [frozenset(batch.parts[0]) for batch in plan]
    assert len(set(present)) == len(present) == sets
    assert frozenset({"x"}) in present
    assert frozenset(each.name for each in specs) in present


def test_as_many_batches_as_anyone_could_wait_for_are_planned() -> None:
    buckets = Buckets(tuple(range(1, 65)), {"length": tuple(range(1, 65))})
    assert len(plan_warmup(echo_signature(LENGTH, max_batch_size=64), buckets, ())) == 4096


@pytest.mark.parametrize("dimensions", [2, 12])
def test_buckets_that_multiply_beyond_reason_are_refused_by_how_many_they_are(dimensions: int) -> None:
    names = [f"axis {k}" for k in range(dimensions)]
    buckets = Buckets((1, 2), {name: tuple(range(1, 51)) for name in names})
    with pytest.raises(InvalidConfig) as caught:
        plan_warmup(echo_signature(*(Dimension(name) for name in names)), buckets, ())
    assert str(caught.value) == (
        f"2 batch sizes times {50**dimensions} combinations of sizes and optional inputs would have to be warmed, "
        "at most 4096 can be: declare fewer buckets"
    )


@st.composite
def dimensions(draw: st.DrawFn) -> Dimension:
    """Axes that have a size of at least 1."""
    step = draw(st.integers(1, 4))
    size = draw(st.integers(1, 5)) * step
    return Dimension(None, draw(st.integers(0, size)), draw(st.none() | st.integers(size, 2 * size)), step)


@given(st.lists(dimensions(), max_size=3), st.sampled_from(DataType), st.integers(0, 2))
def test_whatever_is_run_would_be_admitted_and_is_not_empty(
    axes: list[Dimension], datatype: DataType, max_batch_size: int
) -> None:
    made = Signature(
        (spec("x", *axes, datatype=datatype), spec("extra", 1, optional=True)), (spec("y", 1),), max_batch_size
    )
    gate = Gate("m", made, padding=Padding(made, Buckets(), {}))
    plan = plan_warmup(made, Buckets(tuple(range(1, max_batch_size + 1))), ())
    assert {frozenset(batch.parts[0]) for batch in plan} == {frozenset({"x"}), frozenset({"x", "extra"})}
    for batch in plan:
        assert batch.parts[0]["x"].size >= 1
        admitted = gate.admit(request(*(tensor(name, array) for name, array in batch.parts[0].items())))
        assert admitted.batch_key == batch.key
    # The last has the fewest rows, the smallest sizes, and all inputs.
    smallest = smallest_row(made, Buckets(tuple(range(1, max_batch_size + 1))), ())
    assert {name: array.shape for name, array in smallest.items()} == {
        name: array.shape for name, array in plan[-1].parts[0].items()
    }


@given(dimensions(), st.integers(0, 20))
def test_the_least_size_is_the_first_that_is_allowed(axis: Dimension, above: int) -> None:
    allowed = (size for size in range(above + 1, 100) if axis.allows(size))
    assert least_size(axis, above=above) == next(allowed, None)
