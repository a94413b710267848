"""What is run before READY: every bucket, largest first, with inputs the signature allows, then the samples."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import echo_signature, request, spec, tensor

from preheat.backend import Dimension, Signature
from preheat.scheduling.admission import Gate
from preheat.scheduling.collation import collate
from preheat.scheduling.warmup import Sample, default_buckets, plan_samples, plan_warmup, synthetic_row
from preheat.tensors import DataType

SAMPLE = Sample("typical", {"x": np.array([3, 4], np.float32)}, rows=2, count=3)


@given(st.integers(1, 5000))
def test_default_buckets_are_the_powers_of_two_up_to_the_largest_batch_and_it(max_batch_size: int) -> None:
    buckets = default_buckets(max_batch_size)
    powers = [1 << exponent for exponent in range(13) if 1 << exponent < max_batch_size]
    assert buckets == (*powers, max_batch_size)


def test_a_model_without_a_batch_axis_has_no_buckets_and_runs_one_request() -> None:
    assert default_buckets(0) == ()
    (batch,) = plan_warmup(echo_signature(max_batch_size=0), (), ())
    assert (batch.label, [part["x"].shape for part in batch.parts]) == ("one request", [(2,)])


def test_every_bucket_is_run_largest_first_as_requests_of_one_row() -> None:
    batches = plan_warmup(echo_signature(), (1, 2, 8), ())
    assert [batch.label for batch in batches] == ["batch 8", "batch 2", "batch 1"]
    assert [collate(batch.parts, len(batch.parts))["x"].shape for batch in batches] == [(8, 2), (2, 2), (1, 2)]


def test_samples_give_the_row_of_every_bucket_and_then_run_as_configured() -> None:
    batches = plan_warmup(echo_signature(), (1, 2), (SAMPLE,))
    assert [batch.label for batch in batches] == ["batch 2", "batch 1", *["sample 'typical'"] * 3]
    assert all(part["x"].tolist() == [[3, 4]] for batch in batches for part in batch.parts)
    assert [len(batch.parts) for batch in batches[2:]] == [2, 2, 2]


def test_a_sample_of_a_model_without_a_batch_axis_is_run_as_it_is() -> None:
    batches = plan_samples(echo_signature(max_batch_size=0), (SAMPLE,))
    assert [[part["x"].tolist() for part in batch.parts] for batch in batches] == [[[3, 4]]] * 3


@st.composite
def dimensions(draw: st.DrawFn) -> Dimension:
    """Axes that have a size of at least 1."""
    step = draw(st.integers(1, 4))
    size = draw(st.integers(1, 5)) * step
    return Dimension(None, draw(st.integers(0, size)), draw(st.none() | st.integers(size, 2 * size)), step)


@given(st.lists(dimensions(), max_size=3), st.sampled_from(DataType), st.integers(0, 2))
def test_a_synthetic_row_would_be_admitted_and_is_not_empty(
    axes: list[Dimension], datatype: DataType, max_batch_size: int
) -> None:
    signature = Signature(
        (spec("x", *axes, datatype=datatype), spec("extra", 1, optional=True)), (spec("y", 1),), max_batch_size
    )
    row = synthetic_row(signature)
    assert row.keys() == {"x"}
    assert row["x"].size >= 1
    array = row["x"][np.newaxis] if max_batch_size else row["x"]
    admitted = Gate("m", signature).admit(request(tensor("x", array)))
    assert admitted.inputs["x"].shape == array.shape
