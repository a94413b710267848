"""The double misbehaves as it is told to, when it is told to."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.backends.cases import ECHO, make_inputs, make_source

from preheat.backend import (
    Dimension,
    Instance,
    Model,
    Outcome,
    PartialConfig,
    Request,
    RequestSession,
    Response,
    Signature,
    TensorSession,
    TensorSpec,
)
from preheat.errors import ExecutionFailed, InvalidArtifact, InvalidConfig, LoadFailed
from preheat.tensors import DataType, Tensors
from preheat_backends.double import DoubleBackend

HERE = Path("repository/m")
BATCH = make_inputs(ECHO, 3)


def load(parameters: Mapping[str, str], signature: Signature = ECHO) -> Model:
    return DoubleBackend().load(make_source(HERE, parameters=parameters), signature)


def open_session(**parameters: str) -> TensorSession:
    session = load(parameters).open(Instance(0, "cpu", 1))
    assert isinstance(session, TensorSession)
    return session


def infer(session: TensorSession) -> Tensors | Exception:
    try:
        return session.infer(BATCH)
    except Exception as error:
        return error


def test_it_says_nothing_of_itself() -> None:
    assert DoubleBackend().complete(make_source(HERE)) == PartialConfig()


def test_it_fails_on_every_nth_execution_of_each_session() -> None:
    model = load({"behavior": "fail", "every": "3"})
    for ordinal in range(2):
        session = model.open(Instance(ordinal, "cpu", 1))
        assert isinstance(session, TensorSession)
        failed = [isinstance(infer(session), ExecutionFailed) for _ in range(7)]
        assert failed == [False, False, True, False, False, True, False]


def test_it_crashes_with_an_error_that_is_not_the_servers() -> None:
    assert type(infer(open_session(behavior="crash"))) is RuntimeError


def test_it_answers_too_few_rows() -> None:
    outputs = open_session(behavior="few_rows").infer(BATCH)
    assert {len(array) for array in outputs.values()} == {2}


@pytest.mark.parametrize("datatype", DataType, ids=lambda datatype: datatype.value)
def test_it_answers_in_a_wrong_datatype_of_the_right_shape(datatype: DataType) -> None:
    spec = TensorSpec("x", datatype, (Dimension.fixed(2),))
    session = load({"behavior": "wrong_dtype"}, Signature((spec,), (spec,), 4)).open(Instance(0, "cpu", 1))
    assert isinstance(session, TensorSession)
    answer = session.infer({"x": np.zeros((1, 2), datatype.numpy)})["x"]
    assert answer.dtype != datatype.numpy
    assert answer.shape == (1, 2)


def test_it_fails_its_load() -> None:
    with pytest.raises(LoadFailed, match=r"config\.pbtxt: the double was told to fail its load"):
        load({"behavior": "fail_load"})


def test_an_execution_takes_as_long_as_it_is_told() -> None:
    session = open_session(seconds="0.05")
    started_s = time.monotonic()
    session.infer(BATCH)
    assert time.monotonic() - started_s >= 0.05


def test_it_hangs_for_the_given_time_on_its_turn_only() -> None:
    session = open_session(behavior="hang", every="2", seconds="0.05")
    took_s = []
    for _ in range(2):
        started_s = time.monotonic()
        session.infer(BATCH)
        took_s.append(time.monotonic() - started_s)
    assert took_s[0] < 0.05 <= took_s[1]


def test_it_hangs_until_its_model_is_closed() -> None:
    model = load({"behavior": "hang"})
    session = model.open(Instance(0, "cpu", 1))
    assert isinstance(session, TensorSession)
    thread = threading.Thread(target=session.infer, args=(BATCH,), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    model.close()
    thread.join(10)
    assert not thread.is_alive()


def execute(requests: int, wanted: tuple[str, ...] = (), **parameters: str) -> Sequence[Outcome]:
    session = load({"requests": "true", **parameters}).open(Instance(0, "cpu", 1))
    assert isinstance(session, RequestSession)
    return session.execute([Request(str(number), BATCH, 3, wanted, {}) for number in range(requests)])


def test_as_a_request_session_it_fails_one_request_of_several() -> None:
    outcomes = execute(3, behavior="fail", every="2")
    assert [isinstance(outcome, ExecutionFailed) for outcome in outcomes] == [False, True, False]


def test_as_a_request_session_it_answers_every_output() -> None:
    (outcome,) = execute(1)
    assert isinstance(outcome, Response)
    assert set(outcome.outputs) == {"mask_again", "values_again"}


def test_it_specializes_on_shape_if_told() -> None:
    assert not load({}).specializes_on_shape
    assert load({"specializes_on_shape": "true"}).specializes_on_shape


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"behavior": "dance"}, "behavior: 'dance': must be one of identity, fail, hang"),
        ({"every": "0"}, "every: 0: must be at least 1"),
        ({"seconds": "-1"}, "seconds: -1.0: must be from 0 to"),
        ({"seconds": "nan"}, "seconds: nan: must be from 0 to"),
        ({"seconds": "inf"}, "seconds: inf: must be from 0 to"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_parameter_that_cannot_be_is_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        DoubleBackend().complete(make_source(HERE, parameters=parameters))


X = TensorSpec("x", DataType.FP32, (Dimension("n"), Dimension.fixed(2)))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((X,), (), "1 inputs and 0 outputs"),
        ((X,), (TensorSpec("y", DataType.FP16, X.shape),), r"output 'y': .* input 'x' .* must be declared FP32 \["),
        ((X,), (TensorSpec("y", DataType.FP32, X.shape[:1]),), "output 'y': .* must be declared FP32"),
        ((X,), (TensorSpec("y", DataType.FP32, X.shape[::-1]),), "output 'y': .* must be declared FP32"),
        ((TensorSpec("x", X.datatype, X.shape, optional=True),), (X,), "input 'x': optional: "),
    ],
    ids=["number", "datatype", "rank", "sizes", "optional"],
)
def test_a_signature_that_cannot_be_echoed_is_refused(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: {message}"):
        load({}, Signature(inputs, outputs))


def test_axes_may_have_other_names_in_the_output() -> None:
    load({}, Signature((X,), (TensorSpec("y", X.datatype, (Dimension("m"), X.shape[1])),)))


def test_a_load_that_is_told_to_fail_fails_before_anything_else_is_checked() -> None:
    with pytest.raises(InvalidArtifact):
        load({"behavior": "fail_load"}, Signature((X,), ()))
