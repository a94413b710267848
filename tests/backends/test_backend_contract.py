"""What every backend promises the server, run on all of them."""

import dataclasses
import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.cases import (
    AOT_INDUCTOR,
    CASES,
    COPIES,
    MAX_BATCH,
    Case,
    Copy,
    make_backend,
    make_inputs,
    make_source,
    open_session,
    opened,
)

from preheat.backend import Dimension, Instance, Model, Signature, TensorSpec
from preheat.errors import BackendMissing, ExecutionFailed, InvalidArtifact, InvalidConfig
from preheat.tensors import Array, DataType, Tensors
from preheat_backends.artifacts import Kind

Build = Callable[[Case], Path]
OWN_KINDS = {
    "model.pt2": Kind.EXPORTED_PROGRAM,
    "model.py": Kind.TEXT,
    "model.onnx": Kind.ONNX,
    "model.xml": Kind.OPENVINO_IR,
    "model.pt": Kind.TORCHSCRIPT,
}


def own_kind(case: Case) -> Kind:
    """What the case's artifact is."""
    return Kind.AOTINDUCTOR_PACKAGE if case.backend == AOT_INDUCTOR else OWN_KINDS[str(case.artifact)]


all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
cases_with_artifact = pytest.mark.parametrize(
    "case", [case for case in CASES if case.artifact is not None], ids=lambda case: case.id
)
cases_that_complete = pytest.mark.parametrize(
    "case", [case for case in CASES if case.completes], ids=lambda case: case.id
)


def load(case: Case, folder: Path, signature: Signature | None = None, **settings: Any) -> Model:
    """Do what the server's loader does."""
    parameters = {**case.parameters, **settings.pop("parameters", {})}
    backend, source = case.make_backend(), make_source(folder, parameters=parameters, **settings)
    backend.complete(source)
    return backend.load(source, signature or case.signature)


def assert_equal(actual: Tensors, expected: Tensors, tolerance: float = 0) -> None:
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        assert actual[name].flags.c_contiguous
        np.testing.assert_allclose(actual[name], array, rtol=tolerance, atol=tolerance)


# --- Answers -----------------------------------------------------------------------------------------------------


@all_cases
@pytest.mark.parametrize("rows", [1, 2, MAX_BATCH])
def test_answers_are_right_at_every_batch_size(case: Case, build: Build, rows: int) -> None:
    inputs = make_inputs(case.signature, rows)
    with opened(load(case, build(case))) as session:
        assert_equal(session.infer(inputs), case.reference(inputs), case.tolerance)


@all_cases
def test_a_session_answers_batch_after_batch_of_changing_shape(case: Case, build: Build) -> None:
    with opened(load(case, build(case))) as session:
        for seed, (rows, sequence) in enumerate([(2, 5), (1, 64), (8, 1), (2, 5)]):
            inputs = make_inputs(case.signature, rows, seed=seed, sequence=sequence)
            assert_equal(session.infer(inputs), case.reference(inputs), case.tolerance)


@all_cases
@pytest.mark.parametrize("writable", [True, False])
def test_inputs_are_not_written_to(case: Case, build: Build, writable: bool) -> None:
    inputs = make_inputs(case.signature, 2)
    before = {name: array.copy() for name, array in inputs.items()}
    for array in inputs.values():
        array.setflags(write=writable)
    with opened(load(case, build(case))) as session:
        assert_equal(session.infer(inputs), case.reference(before), case.tolerance)
    assert_equal(inputs, before)


@all_cases
def test_inputs_may_be_put_where_those_of_the_batch_before_were(case: Case, build: Build) -> None:
    """As the server does once the answers are encoded: until then outputs stay, and may be views of the inputs."""
    inputs, others = make_inputs(case.signature, 2), make_inputs(case.signature, 2)
    expected = case.reference({name: array.copy() for name, array in inputs.items()})
    with opened(load(case, build(case))) as session:
        assert_equal(session.infer(inputs), expected, case.tolerance)
        for name, array in inputs.items():
            array[...] = others[name][::-1]
        assert_equal(session.infer(inputs), case.reference(inputs), case.tolerance)


@all_cases
def test_writing_to_outputs_does_not_reach_the_model(case: Case, build: Build) -> None:
    inputs = make_inputs(case.signature, 2)
    with opened(load(case, build(case))) as session:
        for array in session.infer(inputs).values():
            array[...] = 7
        assert_equal(session.infer(inputs), case.reference(inputs), case.tolerance)


@pytest.mark.parametrize(
    ("copy", "datatype"),
    [(copy, datatype) for copy in COPIES for datatype in copy.datatypes],
    ids=lambda value: value.id if isinstance(value, Copy) else value.value,
)
def test_every_datatype_comes_back_as_it_went(copy: Copy, datatype: DataType, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    copy.build(tmp_path / "1", datatype)
    shape = (Dimension.fixed(3),)
    signature = Signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", datatype, shape),), MAX_BATCH)
    array = sample(datatype)
    with opened(make_backend(copy.backend).load(make_source(tmp_path), signature)) as session:
        answer = session.infer({"x": array})["y"]
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)


def sample(datatype: DataType) -> Array:
    """Two rows of three elements, at the datatype's limits where it has such."""
    if datatype is DataType.BYTES:
        return np.array([[b"", b"a\0b", b"x" * 1000], ["é".encode(), b"1", b"2"]], np.object_)
    if datatype.numpy.kind in "iu":
        limits = np.iinfo(datatype.numpy)
        return np.array([[limits.min, 0, limits.max], [1, 2, 3]], datatype.numpy)
    values = [[0, 1, 1], [1, 0, 0]] if datatype is DataType.BOOL else [[-1.5, 0, float("inf")], [0.125, 2, 3]]
    return np.array(values).astype(datatype.numpy)


@all_cases
def test_a_model_runs_without_anything_compiled_exactly_if_it_says_so(case: Case, build: Build) -> None:
    model = load(case, build(case))
    inputs = make_inputs(case.signature, 3, sequence=7)
    with opened(model) as session:
        if model.runs_eagerly:
            assert_equal(session.infer_eagerly(inputs), case.reference(inputs), case.tolerance)
        else:
            with pytest.raises(NotImplementedError, match="does not run eagerly"):
                session.infer_eagerly(inputs)


# --- Threads and life --------------------------------------------------------------------------------------------


@all_cases
def test_two_sessions_answer_right_on_two_threads_at_once(case: Case, build: Build) -> None:
    model = load(case, build(case), instances=2)
    together = threading.Barrier(2)

    def serve(ordinal: int) -> None:
        session = open_session(model, ordinal)
        batches = [make_inputs(case.signature, 1 + seed % MAX_BATCH, seed=10 * ordinal + seed) for seed in range(10)]
        answers = [case.reference(batch) for batch in batches]
        together.wait()
        for call in range(500):
            assert_equal(session.infer(batches[call % 10]), answers[call % 10], case.tolerance)
        session.close()

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(serve, ordinal) for ordinal in range(2)]:
            future.result()
    model.close()


@all_cases
def test_several_models_load_at_once(case: Case, build: Build) -> None:
    folder = build(case)
    inputs = make_inputs(case.signature, 2)

    def load_and_run(_: int) -> Tensors:
        with opened(load(case, folder)) as session:
            return session.infer(inputs)

    with ThreadPoolExecutor(4) as threads:
        for answer in threads.map(load_and_run, range(8)):
            assert_equal(answer, case.reference(inputs), case.tolerance)


@all_cases
def test_a_closed_model_is_freed(case: Case, build: Build) -> None:
    model = load(case, build(case))
    with opened(model) as session:
        session.infer(make_inputs(case.signature, 1))
    freed: list[weakref.ref[Any]] = [weakref.ref(model), weakref.ref(session)]
    del model, session
    gc.collect()
    assert [reference() for reference in freed] == [None, None]


@all_cases
def test_one_session_outlives_the_close_of_another(case: Case, build: Build) -> None:
    model = load(case, build(case), instances=2)
    inputs = make_inputs(case.signature, 2)
    with opened(model) as session:
        model.open(Instance(1, "cpu", 1)).close()
        assert_equal(session.infer(inputs), case.reference(inputs), case.tolerance)


@all_cases
def test_a_failed_batch_tells_why_and_harms_only_itself(case: Case, build: Build) -> None:
    parameters = {**case.failing, "every": "2"} if case.failing else {}
    good = make_inputs(case.signature, 2)
    bad = dict(good)
    first = case.signature.inputs[0].name
    bad[first] = np.concatenate([good[first], good[first]], axis=1)
    with opened(load(case, build(case), parameters=parameters)) as session:
        assert_equal(session.infer(good), case.reference(good), case.tolerance)
        with pytest.raises(ExecutionFailed, match=r"\w") as raised:
            session.infer(bad)
        assert "\n" not in str(raised.value)
        assert_equal(session.infer(good), case.reference(good), case.tolerance)


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if not case.takes_any_parameter], ids=lambda case: case.id)
def test_an_unknown_parameter_is_refused_by_name(case: Case, build: Build) -> None:
    folder = build(case)
    with pytest.raises(InvalidConfig, match=r"config\.pbtxt: parameters: colour: unknown parameter; allowed: "):
        case.make_backend().complete(make_source(folder, parameters={"colour": "red"}))
    with pytest.raises(InvalidConfig, match="colour"):
        case.make_backend().load(make_source(folder, parameters={"colour": "red"}), case.signature)


@all_cases
def test_a_device_that_is_not_there_is_refused(case: Case, build: Build) -> None:
    with pytest.raises(BackendMissing, match="m asks for cuda:99"):
        load(case, build(case), device="cuda:99")


@all_cases
def test_the_backend_says_what_it_runs_on(case: Case) -> None:
    hardware = case.make_backend().hardware()
    assert hardware.library.split()[1][0].isdigit()
    assert hardware.devices[0] == "cpu"


@cases_with_artifact
def test_a_missing_folder_is_refused(case: Case, build: Build) -> None:
    folder = build(case)
    shutil.rmtree(folder / "1")
    with pytest.raises(InvalidArtifact, match=r"m/1: no such folder; the backend '\w+' takes "):
        load(case, folder)


@cases_with_artifact
def test_a_missing_artifact_is_refused_saying_what_was_found_instead(case: Case, build: Build) -> None:
    folder = build(case)
    (folder / "1" / str(case.artifact)).rename(folder / "1" / "modle.bin")
    with pytest.raises(InvalidArtifact, match=r"m/1 has no .*\(it holds .*modle\.bin.*\); the backend '\w+' takes "):
        load(case, folder)


@cases_with_artifact
def test_an_artifact_is_found_by_its_configured_name(case: Case, build: Build) -> None:
    folder, inputs = build(case), make_inputs(case.signature, 2)
    artifact = folder / "1" / str(case.artifact)
    renamed = artifact.rename(artifact.with_stem("encoder"))
    with opened(load(case, folder, artifact_name=renamed.name)) as session:
        assert_equal(session.infer(inputs), case.reference(inputs), case.tolerance)


@cases_with_artifact
@pytest.mark.parametrize("name", ["", ".", "..", "../1/model.onnx", "/etc/passwd", "a\\b", "a\0b"])
def test_a_name_that_could_lead_out_of_the_folder_is_refused(case: Case, build: Build, name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.pbtxt: default_model_filename: .*must be a file's name"):
        load(case, build(case), artifact_name=name)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (case, kind)
        for case in CASES
        for kind in Kind
        if case.artifact is not None and kind not in (own_kind(case), Kind.SPECIAL)
    ],
    ids=lambda value: value.id if isinstance(value, Case) else value.name,
)
def test_a_foreign_artifact_is_named_for_what_it_is(
    case: Case, build: Build, specimens: dict[Kind, Path], kind: Kind
) -> None:
    folder = build(case)
    artifact = folder / "1" / str(case.artifact)
    artifact.unlink()
    if kind is Kind.DIRECTORY:
        artifact.mkdir()
    else:
        shutil.copy(specimens[kind], artifact)
    with pytest.raises(InvalidArtifact) as raised:
        load(case, folder)
    assert str(raised.value).startswith(f"{artifact} is {kind.value}; the backend ")
    assert " takes " in str(raised.value)


@cases_with_artifact
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_an_artifact_that_is_cut_short_is_refused_by_its_path(case: Case, build: Build, share: float) -> None:
    folder = build(case)
    artifact = folder / "1" / str(case.artifact)
    content = artifact.read_bytes()
    artifact.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InvalidArtifact, match=str(artifact)):
        load(case, folder)


# --- Signatures --------------------------------------------------------------------------------------------------


@cases_that_complete
def test_the_artifact_tells_its_signature(case: Case, build: Build) -> None:
    partial = case.make_backend().complete(make_source(build(case)))
    for told, expected in ((partial.inputs, case.signature.inputs), (partial.outputs, case.signature.outputs)):
        assert [spec.datatype for spec in told] == [spec.datatype for spec in expected]
        for spec, want in zip(told, expected, strict=True):
            assert spec.shape[0].allows(1)
            assert spec.shape[0].allows(MAX_BATCH)
            assert [axis.size for axis in spec.shape[1:]] == [axis.size for axis in want.shape]
    assert [spec.name for spec in partial.inputs] == [spec.name for spec in case.signature.inputs]


@cases_that_complete
def test_axes_that_must_be_equal_share_a_name(case: Case, build: Build) -> None:
    partial = case.make_backend().complete(make_source(build(case)))
    specs = (*partial.inputs, *partial.outputs)
    assert len({spec.shape[0].name for spec in specs}) == 1
    varying = {spec.shape[1].name for spec in specs if spec.shape[1].size is None}
    assert len(varying) <= 1
    assert None not in varying


def _replace_input(signature: Signature, **changes: Any) -> Signature:
    first, *others = signature.inputs
    return dataclasses.replace(signature, inputs=(dataclasses.replace(first, **changes), *others))


@cases_that_complete
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "z"}, r"input 'z': no such input"),
        ({"datatype": DataType.INT8}, r"input '\w+': INT8"),
        ({"shape": ()}, r"input '\w+': \[any\(1\.\.8\)\]"),
        ({"optional": True}, r"input '\w+': cannot be optional"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_input_declared_wrong_is_refused_at_load(
    case: Case, build: Build, changes: dict[str, Any], message: str
) -> None:
    has = case.signature.inputs[0]
    with pytest.raises(
        InvalidConfig, match=rf"config\.pbtxt: {message}; the artifact in .* has .*'{has.name}' FP32 \["
    ):
        load(case, build(case), _replace_input(case.signature, **changes))


@cases_that_complete
def test_an_input_that_is_not_declared_is_refused_at_load(case: Case, build: Build) -> None:
    with pytest.raises(InvalidConfig, match=rf"input '{case.signature.inputs[0].name}': not declared"):
        load(case, build(case), dataclasses.replace(case.signature, inputs=case.signature.inputs[1:]))


@cases_that_complete
def test_an_output_declared_wrong_is_refused_at_load(case: Case, build: Build) -> None:
    first, *others = case.signature.outputs
    wrong = dataclasses.replace(first, datatype=DataType.INT8)
    with pytest.raises(InvalidConfig, match=rf"output '{first.name}': INT8; the artifact in .* has .* FP32"):
        load(case, build(case), dataclasses.replace(case.signature, outputs=(wrong, *others)))


@cases_that_complete
def test_an_output_that_is_not_there_is_refused_at_load(case: Case, build: Build) -> None:
    more = (*case.signature.outputs, TensorSpec("z", DataType.FP32, (Dimension.fixed(3),)))
    with pytest.raises(InvalidConfig, match=r"output '\w+': no such output; the artifact in .* has .* FP32"):
        load(case, build(case), dataclasses.replace(case.signature, outputs=more))
