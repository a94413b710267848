"""A model that takes padding for data is found before it is announced, and one that does not passes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from tests.unit.builders import spec

from preheat.backend import Buckets, Dimension, Signature, TensorSpec
from preheat.errors import LoadFailed
from preheat.scheduling.padding import PadValues
from preheat.scheduling.padding_check import PaddingCheck
from preheat.tensors import Array, DataType, Tensors

SEQUENCE = Dimension("sequence", 1, 64)
TOKENS = (spec("ids", SEQUENCE, datatype=DataType.INT64), spec("mask", SEQUENCE, datatype=DataType.INT64))
NO_PADS = {"ids": 0, "mask": 0}


class Noting:
    """Infers with ``compute``, and keeps what it was given."""

    def __init__(self, compute: Callable[[Tensors], Tensors]) -> None:
        self._compute = compute
        self.seen: list[Tensors] = []

    def __call__(self, inputs: Tensors) -> Tensors:
        self.seen.append(inputs)
        return self._compute(inputs)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        return [inputs[name].shape for inputs in self.seen]


def heed_the_mask(inputs: Tensors) -> Tensors:
    ids, mask = inputs["ids"].astype(np.float32), inputs["mask"]
    pooled: Array = (ids * mask).sum(-1) / mask.sum(-1).astype(np.float32)
    return {"pooled": pooled[..., np.newaxis].astype(np.float32)}


def ignore_the_mask(inputs: Tensors) -> Tensors:
    return {"pooled": inputs["ids"].astype(np.float32).mean(-1)[..., np.newaxis]}


def answer_by_size(sizes: Mapping[int, Array]) -> Callable[[Tensors], Tensors]:
    return lambda inputs: {"pooled": sizes[inputs["ids"].shape[-1]]}


def check(
    *,
    inputs: Sequence[TensorSpec] = TOKENS,
    output: TensorSpec | None = None,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    pads: PadValues = NO_PADS,
    sample: Tensors | None = None,
    tolerance: float = 0.01,
    batches: bool = True,
) -> PaddingCheck:
    signature = Signature(tuple(inputs), (output or spec("pooled", 1),), 8 * batches)
    buckets = Buckets((8,), {"sequence": (4, 8)} if sizes is None else sizes)
    return PaddingCheck("m", signature, buckets, pads, sample or {}, tolerance)


def refusal(made: PaddingCheck, infer: Callable[[Tensors], Tensors]) -> str:
    with pytest.raises(LoadFailed) as caught:
        made.run(infer)
    return str(caught.value)


@pytest.mark.parametrize("batches", [True, False])
def test_a_model_that_heeds_its_mask_passes(batches: bool) -> None:
    check(batches=batches).run(heed_the_mask)


@pytest.mark.parametrize("batches", [True, False])
def test_a_model_that_ignores_its_mask_is_refused_by_output_dimension_size_and_bucket(batches: bool) -> None:
    text = refusal(check(batches=batches), ignore_the_mask)
    assert text.startswith(
        "padding changes the answer: output 'pooled' of sequence 1 padded to 4 differs by 75.0% of its largest value, "
        "allowed is 1.0%"
    )
    assert "preheat.pad.INPUT" in text


def test_every_bucket_is_tried_with_the_shortest_input_that_it_holds() -> None:
    infer = Noting(heed_the_mask)
    check(sizes={"sequence": (4, 8, 9)}).run(infer)
    # Padded, then as it is.
    assert infer.shapes("ids") == infer.shapes("mask") == [(1, 4), (1, 1), (1, 8), (1, 5)]


def test_a_later_bucket_that_changes_answers_is_found_too() -> None:
    def compute(inputs: Tensors) -> Tensors:
        return ignore_the_mask(inputs) if inputs["ids"].shape[-1] == 8 else heed_the_mask(inputs)

    assert "sequence 5 padded to 8" in refusal(check(), compute)


def test_sizes_that_no_request_can_have_are_not_tried() -> None:
    axis = Dimension("sequence", 1, 64, multiple_of=4)
    infer = Noting(heed_the_mask)
    check(inputs=[spec(each.name, axis, datatype=each.datatype) for each in TOKENS], sizes={"sequence": (4, 12)}).run(
        infer
    )
    assert infer.shapes("ids") == [(1, 12), (1, 8)]


def test_dimensions_are_tried_one_by_one_beside_the_smallest_sizes_of_the_others() -> None:
    image = spec("image", Dimension("height", 2), Dimension("width"), Dimension("depth", 3))
    infer = Noting(lambda inputs: {"pooled": inputs["image"].max((1, 2, 3))[:, np.newaxis]})
    made = check(inputs=[image], sizes={"height": (4,), "width": (5,)}, pads={"image": 0.0})
    made.run(infer)
    assert infer.shapes("image") == [(1, 4, 5, 3), (1, 2, 1, 3)] * 2


def test_a_sample_gives_the_values_where_it_is_large_enough() -> None:
    infer = Noting(heed_the_mask)
    sample = {"ids": np.array([7, 8, 9]), "mask": np.array([1, 1, 1])}
    check(sample=sample).run(infer)
    assert [inputs["ids"].tolist() for inputs in infer.seen] == [[[7, 0, 0, 0]], [[7]], [[1] * 5 + [0] * 3], [[1] * 5]]


def test_a_sample_gives_the_sizes_of_dimensions_that_are_not_padded() -> None:
    image = spec("image", SEQUENCE, Dimension("depth", 1))
    infer = Noting(lambda inputs: {"pooled": inputs["image"].max((1, 2))[:, np.newaxis]})
    sample = {"image": np.ones((2, 3), np.float32)}
    check(inputs=[image], sizes={"sequence": (4,)}, pads={"image": 0.0}, sample=sample).run(infer)
    assert infer.shapes("image") == [(1, 4, 3), (1, 1, 3)]


def test_values_of_its_own_are_none_that_are_padding() -> None:
    infer = Noting(lambda inputs: {"pooled": np.zeros((len(inputs["ids"]), 1), np.float32)})
    words = spec("words", SEQUENCE, datatype=DataType.BYTES)
    check(inputs=[*TOKENS, words], pads={"ids": 1, "mask": 0, "words": b""}).run(infer)
    assert {name: array.tolist() for name, array in infer.seen[0].items()} == {
        "ids": [[0, 1, 1, 1]],
        "mask": [[1, 0, 0, 0]],
        "words": [[b"preheat", b"", b"", b""]],
    }


def test_inputs_that_are_optional_are_left_out_and_given() -> None:
    infer = Noting(heed_the_mask)
    check(inputs=[*TOKENS, spec("bias", SEQUENCE, optional=True)], pads={**NO_PADS, "bias": 0}).run(infer)
    assert {tuple(inputs) for inputs in infer.seen} == {("ids", "mask"), ("ids", "mask", "bias")}


def test_padding_that_only_an_optional_input_makes_count_is_found() -> None:
    def average(inputs: Tensors) -> Tensors:
        given = inputs.get("bias")
        return {"pooled": np.ones((1, 1), np.float32) if given is None else given.mean(axis=1, keepdims=True)}

    optional = check(inputs=[*TOKENS, spec("bias", SEQUENCE, optional=True)], pads={**NO_PADS, "bias": 0})
    assert "padding changes the answer" in refusal(optional, average)


def test_outputs_are_compared_at_the_size_of_what_was_asked() -> None:
    tokens = spec("pooled", SEQUENCE)
    check(output=tokens).run(lambda inputs: {"pooled": inputs["ids"].astype(np.float32)})
    text = refusal(check(output=tokens), lambda inputs: {"pooled": inputs["ids"][:, ::-1].astype(np.float32)})
    assert "sequence 1 padded to 4 differs by 100.0%" in text


def test_a_maximum_that_padding_takes_part_in_is_found() -> None:
    features = check(inputs=[spec("x", SEQUENCE, 4, datatype=DataType.FP32)], pads={"x": 0}, output=spec("pooled", 4))
    assert "padding changes the answer" in refusal(features, lambda inputs: {"pooled": inputs["x"].max(axis=1)})


def test_an_output_that_keeps_its_padding_is_refused() -> None:
    free = spec("pooled", -1)
    text = refusal(check(output=free), lambda inputs: {"pooled": inputs["ids"].astype("f4")})
    assert "has the shape [1, 4], not [1, 1], since it is not cut back: name its dimensions in parameter" in text


def test_a_session_that_overwrites_its_last_answer_is_found_out_all_the_same() -> None:
    buffer = np.zeros((1, 1), np.float32)

    def compute(inputs: Tensors) -> Tensors:
        buffer[...] = ignore_the_mask(inputs)["pooled"]
        return {"pooled": buffer}

    assert "differs by 75.0%" in refusal(check(), compute)


def test_outputs_that_nobody_promised_may_be_anything() -> None:
    check().run(lambda inputs: {**heed_the_mask(inputs), "length": np.array(inputs["ids"].shape[-1])})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("padded", "expected", "passes"),
    [
        ([1.0, 4.0], [1.0, 4.0], True),
        ([1.03, 4.03], [1.0, 4.0], True),
        ([1.05, 4.0], [1.0, 4.0], False),
        ([-4.0, -1.05], [-4.0, -1.0], False),
        ([0.009, 0.0], [0.0, 0.0], True),
        ([0.011, 0.0], [0.0, 0.0], False),
        ([NAN, 4.0], [NAN, 4.0], True),
        ([NAN, 4.05], [NAN, 4.0], False),
        ([4.0, NAN], [NAN, 4.0], False),
        ([4.0, 4.0], [NAN, 4.0], False),
        ([INF, -INF], [INF, -INF], True),
        ([INF, INF], [INF, -INF], False),
        ([NAN, 4.0], [INF, 4.0], False),
        ([INF, 4.0], [1.0, 4.0], False),
    ],
)
@pytest.mark.parametrize("datatype", [DataType.FP32, DataType.FP64, DataType.BF16])
def test_answers_may_differ_by_a_share_of_the_largest_value_and_never_in_what_is_no_number(
    padded: list[float], expected: list[float], passes: bool, datatype: DataType
) -> None:
    made = check(output=spec("pooled", 2, datatype=datatype), sizes={"sequence": (4,)}, tolerance=0.01)
    ours, theirs = (np.array([each], np.float64).astype(datatype.numpy) for each in (padded, expected))
    infer = answer_by_size({4: ours, 1: theirs})
    if passes:
        made.run(infer)
    else:
        assert "output 'pooled'" in refusal(made, infer)


@pytest.mark.parametrize("datatype", [DataType.INT64, DataType.UINT8, DataType.BOOL, DataType.BYTES])
def test_answers_that_are_no_floating_point_numbers_must_be_equal(datatype: DataType) -> None:
    values = [b"a", b"b"] if datatype is DataType.BYTES else [0, 1]
    one, other = (np.array([[value]], datatype.numpy) for value in values)
    made = check(output=spec("pooled", 1, datatype=datatype), sizes={"sequence": (4,)}, tolerance=0.9)
    made.run(answer_by_size({4: one, 1: one}))
    assert "differs by 100.0%" in refusal(made, answer_by_size({4: other, 1: one}))


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.74])
def test_what_is_beyond_the_tolerance_is_refused_by_it(tolerance: float) -> None:
    assert f"allowed is {tolerance:.1%}" in refusal(check(tolerance=tolerance), ignore_the_mask)


def test_what_is_within_the_tolerance_passes() -> None:
    # The mean over 1 of 4 is off by 75%.
    check(sizes={"sequence": (4,)}, tolerance=0.76).run(ignore_the_mask)
