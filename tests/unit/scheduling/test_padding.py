"""Padding and cutting are inverses, padding is what was asked for, and what needs none is left as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.unit.builders import aligned, spec

from preheat.backend import Buckets, Dimension, Outside, Signature, TensorSpec
from preheat.errors import InvalidRequest
from preheat.scheduling.padding import Padding, bucket_for
from preheat.tensors import Array, DataType, Tensors

LENGTH, WIDTH = Dimension("length"), Dimension("width")
BUCKETS = Buckets(rows=(1, 4, 20), sizes={"length": (2, 4), "width": (3,)})
# For each dimension the sizes that share a bucket, and last one that is beyond all.
RANGES = {"length": [(0, 2), (3, 4), (5, 5)], "width": [(0, 3), (5, 5)]}
LAYOUTS: Sequence[tuple[int | Dimension, ...]] = [
    (),
    (2,),
    (LENGTH,),
    (LENGTH, WIDTH),
    (WIDTH, 2, LENGTH),
    (LENGTH,) * 2,
]
PADS: Mapping[DataType, bool | int | bytes] = {
    datatype: b"pad" if datatype is DataType.BYTES else 101 if datatype is not DataType.BOOL else True
    for datatype in DataType
}


@dataclass(frozen=True, slots=True)
class Case:
    """Parts that share a batch of a model that answers every input back."""

    specs: Sequence[TensorSpec]
    padding: Padding
    parts: Sequence[Tensors]
    batches: bool

    @property
    def rows(self) -> Sequence[int]:
        return [len(next(iter(part.values()))) if self.batches else 1 for part in self.parts]

    def collated(self, *, rows: int | None = None) -> Tensors:
        """As a batch of ``rows`` rows, or of as many as there are."""
        (key,) = {self.padding.key(part) for part in self.parts}
        return self.padding.collate(self.parts, (rows or sum(self.rows)) if self.batches else None, key)

    @property
    def slices(self) -> Sequence[slice | None]:
        """Where in a batch each part's rows are."""
        if not self.batches:
            return [None]
        return [slice(*ends) for ends in pairwise(accumulate(self.rows, initial=0))]


@st.composite
def cases(draw: st.DrawFn, batches: bool | None = None) -> Case:
    batches = draw(st.booleans()) if batches is None else batches
    layouts = draw(st.lists(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(DataType)), min_size=1, max_size=3))
    specs = tuple(spec(f"tensor {k}", *dims, datatype=each) for k, (dims, each) in enumerate(layouts))
    ranges = {name: draw(st.sampled_from(choices)) for name, choices in RANGES.items()}
    parts = [
        draw(
            tensors(
                specs, (rows,) if batches else (), {name: draw(st.integers(*each)) for name, each in ranges.items()}
            )
        )
        for rows in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3 if batches else 1))
    ]
    pads = {each.name: PADS[each.datatype] for each in specs}
    return Case(specs, Padding(Signature(specs, specs, 20 * batches), BUCKETS, pads), parts, batches)


@st.composite
def tensors(draw: st.DrawFn, specs: Sequence[TensorSpec], lead: tuple[int, ...], sizes: Mapping[str, int]) -> Tensors:
    """One request's inputs, with ``sizes`` for the dimensions of those names."""
    shapes = [
        tuple(sizes[axis.name or ""] if axis.size is None else axis.size for axis in each.shape) for each in specs
    ]
    return {each.name: draw(arrays(each.datatype, (*lead, *shape))) for each, shape in zip(specs, shapes, strict=True)}


def arrays(datatype: DataType, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Values that no padding is, where there are others."""
    if datatype is DataType.BYTES:
        return hnp.arrays(np.object_, shape, elements=st.binary(max_size=2))
    numbers = st.integers(0, 1) if datatype is DataType.BOOL else st.integers(0, 100)
    return hnp.arrays(np.int64, shape, elements=numbers).map(lambda array: array.astype(datatype.numpy))


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert array.tolist() == theirs[name].tolist()


def numbers(*shape: int) -> Array:
    return np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def padding(*specs: TensorSpec, buckets: Buckets = BUCKETS, outputs: Sequence[TensorSpec] = ()) -> Padding:
    pads = {each.name: -1.0 for each in specs}
    return Padding(Signature(specs, tuple(outputs) or specs, 20), buckets, pads)


@given(cases(), st.integers(0, 3))
def test_cutting_the_answers_of_an_identity_gives_back_exactly_the_parts(case: Case, spare: int) -> None:
    batch = case.collated(rows=sum(case.rows) + spare)
    for part, rows in zip(case.parts, case.slices, strict=True):
        assert_equal(case.padding.cut(batch, part, rows), part)


def test_a_tensor_without_axes_stays_an_array() -> None:
    outputs = {"y": numbers(4), "word": np.array(b"one", np.object_)}
    signature = Signature((spec("x", LENGTH),), (spec("y", LENGTH), spec("word", datatype=DataType.BYTES)))
    cut = Padding(signature, BUCKETS, {"x": 0}).cut(outputs, {"x": numbers(3)}, None)
    assert isinstance(cut["word"], np.ndarray)
    assert cut["word"].tolist() == b"one"


@given(cases(batches=True), st.integers(0, 3))
def test_a_batch_has_the_shapes_of_its_key_and_is_contiguous(case: Case, spare: int) -> None:
    rows = sum(case.rows) + spare
    shapes = dict(case.padding.key(case.parts[0]))
    for name, array in case.collated(rows=rows).items():
        assert array.shape == (rows, *shapes[name])
        assert array.flags.c_contiguous


@given(cases(batches=True), st.integers(1, 3))
def test_padding_rows_repeat_the_first_row_as_it_was_padded(case: Case, spare: int) -> None:
    rows = sum(case.rows)
    for array in case.collated(rows=rows + spare).values():
        for row in range(rows, rows + spare):
            assert array[row : row + 1].tolist() == array[:1].tolist()


@given(cases())
def test_all_that_is_not_a_part_is_the_pad_value_of_its_input(case: Case) -> None:
    batch = case.collated()
    for each in case.specs:
        for part, rows in zip(case.parts, case.slices, strict=True):
            room = batch[each.name] if rows is None else batch[each.name][rows]
            filled = np.zeros(room.shape, bool)
            filled[tuple(map(slice, part[each.name].shape))] = True
            assert all(value == PADS[each.datatype] for value in room[~filled].tolist())


@given(cases(batches=True))
def test_parts_of_the_same_padded_shapes_have_one_key_whatever_their_rows(case: Case) -> None:
    assert len({case.padding.key(part) for part in case.parts}) == 1


def test_requests_of_different_buckets_or_different_inputs_have_different_keys() -> None:
    made = padding(spec("x", LENGTH), spec("z", 2, optional=True))
    keys = {
        made.key({"x": numbers(1, 2)}),
        made.key({"x": numbers(1, 3)}),
        made.key({"x": numbers(1, 5)}),
        made.key({"x": numbers(1, 6)}),
        made.key({"x": numbers(1, 2), "z": numbers(1, 2)}),
    }
    assert len(keys) == 5
    assert made.key({"x": numbers(1, 1)}) == made.key({"x": numbers(3, 2)}) == (("x", (2,)),)


def test_a_key_does_not_depend_on_the_order_of_inputs() -> None:
    made = padding(spec("x", LENGTH), spec("z", 2))
    x, z = numbers(1, 2), numbers(1, 2)
    assert made.key({"x": x, "z": z}) == made.key({"z": z, "x": x})


def test_a_lone_part_that_needs_no_padding_is_not_copied() -> None:
    made = padding(spec("x", LENGTH))
    for array, shape, rows, same in (
        (aligned(numbers(3000, 4)), (4,), 3000, True),
        (aligned(numbers(3000, 4)), (4,), 3001, False),
        (aligned(numbers(3000, 3)), (4,), 3000, False),
        # Beyond every bucket: at its own size.
        (aligned(numbers(3000, 9)), (9,), 3000, True),
        # Where an engine could not read it.
        (aligned(numbers(3001, 4))[1:], (4,), 3000, False),
        (aligned(numbers(4, 3000)).T, (4,), 3000, False),
        # So small that it does not matter.
        (aligned(numbers(3, 4)), (4,), 3, False),
    ):
        assert made.key({"x": array}) == (("x", shape),)
        assert (made.collate([{"x": array}], rows, (("x", shape),))["x"] is array) == same


def test_a_part_is_padded_in_every_axis_that_has_buckets() -> None:
    made = padding(spec("x", LENGTH, WIDTH))
    batch = made.collate([{"x": numbers(1, 1, 2)}], 2, (("x", (2, 3)),))
    assert batch["x"].tolist() == [[[1, 2, -1], [-1, -1, -1]]] * 2


def test_cutting_copies_nothing() -> None:
    made, outputs = padding(spec("x", LENGTH)), {"x": numbers(4, 4)}
    cut = made.cut(outputs, {"x": numbers(1, 3)}, slice(1, 2))["x"]
    assert cut.tolist() == [[5, 6, 7]]
    assert np.shares_memory(cut, outputs["x"])


def test_an_output_whose_dimension_came_with_an_input_that_is_absent_is_left_alone() -> None:
    made = padding(spec("x", LENGTH), spec("z", WIDTH, optional=True), outputs=[spec("y", LENGTH, WIDTH)])
    outputs = {"y": numbers(1, 4, 7)}
    assert made.cut(outputs, {"x": numbers(1, 3)}, slice(0, 1))["y"].shape == (1, 3, 7)
    with_both = {"x": numbers(1, 3), "z": numbers(1, 2)}
    assert made.cut(outputs, with_both, slice(0, 1))["y"].shape == (1, 3, 2)


def test_outputs_without_an_axis_that_has_buckets_are_cut_by_rows_only() -> None:
    made = padding(spec("x", LENGTH), outputs=[spec("pooled", 4), spec("free", -1)])
    outputs = {"pooled": numbers(4, 4), "free": numbers(4, 4)}
    assert {each.shape for each in made.cut(outputs, {"x": numbers(1, 3)}, slice(0, 1)).values()} == {(1, 4)}


@pytest.mark.parametrize(("size", "fits"), [(0, True), (2, True), (3, True), (4, True), (5, False), (99, False)])
def test_shapes_fit_if_every_size_has_a_bucket(size: int, fits: bool) -> None:
    made = padding(spec("x", LENGTH), spec("free", -1))
    assert made.fits(made.key({"x": numbers(1, size), "free": numbers(1, 77)})) == fits


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (2, 4), (4, 4), (5, 20), (20, 20)])
def test_a_batch_takes_the_smallest_bucket_that_holds_its_rows(rows: int, expected: int) -> None:
    assert padding(spec("x", LENGTH)).bucket_rows(rows) == expected


@given(st.integers(0, 30), st.lists(st.integers(1, 20), unique=True, max_size=5).map(sorted))
def test_a_size_takes_the_smallest_bucket_that_holds_it_or_else_itself(size: int, buckets: list[int]) -> None:
    assert bucket_for(size, buckets) == min([each for each in buckets if each >= size], default=size)


@pytest.mark.parametrize("batches", [True, False])
def test_a_size_beyond_every_bucket_is_refused_by_input_dimension_and_buckets(batches: bool) -> None:
    signature = Signature((spec("x", 5, LENGTH), spec("w", WIDTH)), (spec("y", 1),), 20 * batches)
    made, lead = Padding(signature, BUCKETS, {}), (1,) * batches
    made.refuse_outside("bert", {"x": numbers(*lead, 5, 4), "w": numbers(*lead, 0)})
    with pytest.raises(InvalidRequest) as caught:
        made.refuse_outside("bert", {"w": numbers(*lead, 3), "x": numbers(*lead, 5, 7)})
    assert str(caught.value) == (
        "input 'x' for model 'bert' has 7 in dimension 'length', which is beyond every bucket: 2, 4"
    )


@pytest.mark.parametrize(
    "buckets",
    [
        Buckets((1, 2)),
        Buckets(sizes=BUCKETS.sizes, outside=Outside.EAGER),
        Buckets(sizes=BUCKETS.sizes, outside=Outside.COMPILE),
    ],
)
def test_a_size_beyond_every_bucket_passes_where_there_are_none_or_the_model_takes_such(buckets: Buckets) -> None:
    padding(spec("x", LENGTH), buckets=buckets).refuse_outside("m", {"x": numbers(1, 99)})
