"""The python backend: the life of a TritonPythonModel, what it receives and what it may answer."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.cases import make_source
from tests.backends.triton_models import (
    TELLS,
    TEXT,
    ask,
    load,
    open_instance,
    opened,
    outputs_of,
    telling,
    write,
)

from preheat.backend import Dimension, Instance, Request, Signature, TensorSpec
from preheat.errors import (
    ExecutionFailed,
    InvalidArtifact,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    RequestCancelled,
    ServingError,
    Unsupported,
)
from preheat.tensors import DataType
from preheat_backends.python import PythonBackend
from preheat_backends.python.model_code import ModelCode

FOUR = (Dimension.fixed(4),)
NUMBERS = Signature((TensorSpec("x", DataType.FP32, FOUR),), (TensorSpec("y", DataType.FP32, FOUR),), 8)


# --- Its life ----------------------------------------------------------------------------------------------------


def test_an_instance_lives_on_the_thread_that_opened_it(tmp_path: Path) -> None:
    source = """
        import threading
        import numpy as np
        import triton_python_backend_utils as pb_utils

        IMPORTED_ON = threading.current_thread().name

        class TritonPythonModel:
            def initialize(self, args):
                self.threads = [IMPORTED_ON, threading.current_thread().name]

            def execute(self, requests):
                text = " ".join([*self.threads, threading.current_thread().name])
                tensor = pb_utils.Tensor("text", np.array([text], np.object_))
                return [pb_utils.InferenceResponse([tensor])]

            def finalize(self):
                print("finalized on", threading.current_thread().name)
    """
    model, texts = load(write(tmp_path, source)), []

    def live() -> None:
        session = open_instance(model)
        texts.append(ask(session))
        session.close()

    thread = threading.Thread(target=live, name="owner")
    thread.start()
    thread.join()
    assert texts == ["owner owner owner"]


def test_finalize_is_called_once_and_may_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = telling("return ''") + "\n    def finalize(self):\n        print('finalized')\n        1 / 0\n"
    with opened(write(tmp_path, source)) as session:
        ask(session)
        assert capsys.readouterr().out == ""
    assert capsys.readouterr().out == "finalized\n"
    assert "finalize() failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_model_needs_neither_initialize_nor_finalize(tmp_path: Path) -> None:
    source = "class TritonPythonModel:\n    def execute(self, requests): return []"
    with opened(write(tmp_path, source)) as session:
        assert session.execute([]) == []


def test_initialize_is_told_what_triton_tells_it(tmp_path: Path) -> None:
    config = {"max_batch_size": 4, "parameters": {"colour": {"string_value": "red"}}, "instance_group": []}
    source = make_source(
        write(tmp_path, telling("import json\nreturn json.dumps(self.args)")),
        config=config,
        parameters={"colour": "red"},
    )
    model = PythonBackend().load(source, TELLS)
    session = open_instance(model, 1)
    arguments = json.loads(ask(session))
    session.close()
    assert json.loads(arguments.pop("model_config")) == {
        "name": "m", "backend": "python", "input": [], "output": [], **config
    }  # fmt: skip
    assert arguments == {
        "model_instance_kind": "CPU",
        "model_instance_name": "m_0_1",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_name": "m",
    }


@pytest.mark.parametrize(
    ("device", "kind", "expected"),
    [("cpu", "KIND_CPU", ["CPU", "0"]), ("cuda:1", "KIND_GPU", ["GPU", "1"]), ("cuda:0", "KIND_MODEL", ["MODEL", "0"])],
)
def test_initialize_is_told_where_the_instance_belongs(
    tmp_path: Path, device: str, kind: str, expected: list[str]
) -> None:
    body = "return self.args['model_instance_kind'] + ' ' + self.args['model_instance_device_id']"
    config = {"instance_group": [{"kind": kind}]}
    # Not through the backend, which finds no such device here.
    code = ModelCode(make_source(write(tmp_path, telling(body)), config=config))
    session = code.open(Instance(0, device, 1), TELLS)
    assert ask(session).split() == expected
    session.close()


# --- What fails a load -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def nothing(): ...", r"model\.py: defines no class TritonPythonModel$"),
        ("TritonPythonModel = 5", r"model\.py: defines no class TritonPythonModel$"),
        ("class TritonPythonModel: ...", r"TritonPythonModel has no method execute\(self, requests\)$"),
        (
            "class TritonPythonModel:\n    async def execute(self, requests): ...",
            r"not supported by this server: async def execute; make it a plain def$",
        ),
        ("def broken(:", r"importing it raised SyntaxError: invalid syntax \(model\.py, line 1\)$"),
        ("import helper", r"importing it raised KeyError: 'gone' \(helper\.py, line 1\)$"),
        ("raise SystemExit(3)", r"importing it raised SystemExit: 3 \(model\.py, line 1\)$"),
        ("raise ValueError('one\\n\\ntwo')", r"importing it raised ValueError: one two \(model\.py, line 1\)$"),
    ],
)  # fmt: skip
def test_code_that_is_no_model_is_refused(tmp_path: Path, source: str, expected: str) -> None:
    with pytest.raises(InvalidArtifact, match=expected):
        load(write(tmp_path, source, {"helper.py": "{}['gone']"}))


def test_an_execution_environment_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, telling("return ''"))
    with pytest.raises(
        InvalidConfig, match=r"parameters: EXECUTION_ENV_PATH: 'env\.tar\.gz': not supported by this server"
    ):
        load(folder, parameters={"EXECUTION_ENV_PATH": "env.tar.gz"})


@pytest.mark.parametrize("value", ["yes", "no"])
def test_where_inputs_shall_be_changes_nothing_since_all_are_on_the_host(tmp_path: Path, value: str) -> None:
    body = "return str(request.inputs()[0].is_cpu())"
    with opened(write(tmp_path, telling(body)), parameters={"FORCE_CPU_ONLY_INPUT_TENSORS": value}) as session:
        assert ask(session, {"x": np.zeros(1, np.float32)}) == "True"


# --- What a model receives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return request.request_id()", "r1"),
        ("return str(request.correlation_id())", "7"),
        ("return str(request.flags())", "3"),
        ("return str(request.timeout())", "1000"),
        ("return request.parameters()", '{"colour": "red", "n": 3}'),
        ("return str(sorted(request.requested_output_names()))", "['text']"),
        ("return str(request.is_cancelled())", "False"),
        ("return str(request.trace().get_context())", "None"),
        ("return str([tensor.name() for tensor in request.inputs()])", "['x']"),
        ("return str(pb_utils.get_input_tensor_by_name(request, 'x').as_numpy().tolist())", "[1.0, 2.0]"),
        ("return str(pb_utils.get_input_tensor_by_name(request, 'z'))", "None"),
        ("request.set_flags(2)\nreturn str(request.flags())", "2"),
        ("request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL)\nreturn 'fine'", "fine"),
    ],
)
def test_a_request_tells_about_itself(tmp_path: Path, body: str, expected: str) -> None:
    parameters = {
        "sequence_id": 7, "sequence_start": True, "sequence_end": True, "timeout": 1000, "priority": 1,
        "colour": "red", "n": 3,
    }  # fmt: skip
    with opened(write(tmp_path, telling(body))) as session:
        assert ask(session, {"x": np.array([1, 2], np.float32)}, id="r1", parameters=parameters) == expected


def test_parameters_of_the_wrong_type_are_no_trouble(tmp_path: Path) -> None:
    body = "return f'{request.correlation_id()} {request.flags()} {request.timeout()}'"
    rubbish = {"sequence_id": 0.5, "sequence_start": "yes", "sequence_end": 1, "timeout": "soon"}
    with opened(write(tmp_path, telling(body))) as session:
        assert ask(session, parameters=rubbish) == "0 0 0"


def test_only_the_outputs_that_the_client_wants_are_asked_for(tmp_path: Path) -> None:
    signature = Signature((), (TEXT, TensorSpec("more", DataType.FP32, FOUR)))
    body = "return str(sorted(request.requested_output_names()))"
    with opened(write(tmp_path, telling(body)), signature) as session:
        assert ask(session) == "['more', 'text']"
        assert ask(session, requested_outputs=("text",)) == "['text']"


@pytest.mark.parametrize("writable", [True, False])
def test_a_model_may_write_to_its_inputs_and_the_request_keeps_its_own(tmp_path: Path, writable: bool) -> None:
    body = """
        array = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        array += 1
        return str(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().tolist())
    """
    array = np.zeros(2, np.float32)
    array.setflags(write=writable)
    with opened(write(tmp_path, telling(body))) as session:
        assert ask(session, {"x": array}) == "[1.0, 1.0]"
    assert array.tolist() == [0, 0]


# --- What a model may answer -------------------------------------------------------------------------------------

ANSWERING = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        y = pb_utils.Tensor("y", np.ones((1, 4), np.float32))
        good = pb_utils.InferenceResponse([y])
        {body}
"""


def answer(folder: Path, body: str, requests: int = 1, signature: Signature = NUMBERS) -> Any:
    """The outcomes of a model whose execute() ends with ``body``."""
    inputs = {"x": np.zeros((1, 4), np.float32)}
    with opened(write(folder, ANSWERING.format(body=body)), signature) as session:
        return session.execute([Request(str(number), inputs, 1, (), {}) for number in range(requests)])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNKNOWN", ExecutionFailed),
        ("INTERNAL", ExecutionFailed),
        ("NOT_FOUND", ModelNotFound),
        ("INVALID_ARG", InvalidRequest),
        ("UNAVAILABLE", ModelUnavailable),
        ("UNSUPPORTED", Unsupported),
        ("ALREADY_EXISTS", InvalidRequest),
        ("CANCELLED", RequestCancelled),
    ],
)
def test_an_error_answers_its_request_alone(tmp_path: Path, code: str, kind: type[ServingError]) -> None:
    error = f"pb_utils.InferenceResponse(error=pb_utils.TritonError('no luck', pb_utils.TritonError.{code}))"
    first, failed, last = answer(tmp_path, f"return [good, {error}, good]", requests=3)
    assert type(failed) is kind
    assert str(failed) == "no luck"
    for outcome in (first, last):
        assert outputs_of(outcome)["y"].tolist() == [[1, 1, 1, 1]]


def test_an_error_without_a_code_is_internal(tmp_path: Path) -> None:
    (outcome,) = answer(tmp_path, "return [pb_utils.InferenceResponse(error=pb_utils.TritonError('no luck'))]")
    assert type(outcome) is ExecutionFailed


@pytest.mark.parametrize("wrong", ["None", "y", "[good]"])
def test_what_is_no_response_fails_its_request_alone(tmp_path: Path, wrong: str) -> None:
    first, failed = answer(tmp_path, f"return [good, {wrong}]", requests=2)
    assert "y" in outputs_of(first)
    assert isinstance(failed, ExecutionFailed)
    assert str(failed).startswith("execute() answered a request with ")


@pytest.mark.parametrize("wrong", ["return None", "return good", "yield good"])
def test_what_is_no_list_fails_the_batch(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ExecutionFailed, match=r"execute\(\) returned \w+; it must return a list of pb_utils\."):
        answer(tmp_path, wrong, requests=2)


def test_too_few_responses_are_left_for_the_server_to_refuse(tmp_path: Path) -> None:
    assert len(answer(tmp_path, "return [good]", requests=2)) == 1


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("ValueError('one\\n two')", "ValueError: one two"),
        ("pb_utils.TritonModelException('no luck')", "TritonModelException: no luck"),
        ("KeyError('x')", "KeyError: 'x'"),
        ("AssertionError", "AssertionError"),
        ("SystemExit(1)", "SystemExit: 1"),
    ],
)
def test_what_execute_raises_reaches_the_client_and_its_trace_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raised: str, expected: str
) -> None:
    with pytest.raises(ExecutionFailed) as failed:
        answer(tmp_path, f"raise {raised}")
    assert str(failed.value) == expected
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("preheat.python.m", "ERROR")
    assert 'model.py", line 9, in execute' in caplog.text


def test_a_model_serves_on_after_it_failed(tmp_path: Path) -> None:
    with opened(write(tmp_path, telling("return str(1 / request.inputs()[0].as_numpy()[0].item())"))) as session:
        with pytest.raises(ExecutionFailed, match="ZeroDivisionError"):
            ask(session, {"x": np.zeros(1, np.float32)})
        assert ask(session, {"x": np.ones(1, np.float32)}) == "1.0"


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ("np.array([['a', b'b', np.str_('é'), bytearray(b'c')]], np.object_)", [b"a", b"b", "é".encode(), b"c"]),
        ("np.array([['ab', 'é']])", [b"ab", "é".encode()]),
        ("np.array([[b'ab', b'c']])", [b"ab", b"c"]),
        ("np.array([[1, 2.5, True, np.float32(1.5)]], np.object_)", [b"1", b"2.5", b"True", b"1.5"]),
        ("np.empty((1, 0), np.object_)", []),
    ],
)
def test_text_of_any_kind_becomes_bytes(tmp_path: Path, array: str, expected: list[bytes]) -> None:
    signature = Signature((), (TensorSpec("text", DataType.BYTES, (Dimension(),)),), 8)
    body = f"return [pb_utils.InferenceResponse([pb_utils.Tensor('text', {array})])]"
    (outcome,) = answer(tmp_path, body, signature=signature)
    output = outputs_of(outcome)["text"]
    assert output.dtype == np.object_
    assert output.tolist() == [expected]
    assert all(type(element) is bytes or isinstance(element, np.bytes_) for element in output.flat)


def test_text_that_has_no_utf_8_fails_its_request_alone(tmp_path: Path) -> None:
    signature = Signature((), (TEXT,))
    bad = "pb_utils.InferenceResponse([pb_utils.Tensor('text', np.array(['\\ud800'], np.object_))])"
    first, failed = answer(tmp_path, f"return [pb_utils.InferenceResponse(), {bad}]", requests=2, signature=signature)
    assert outputs_of(first) == {}
    assert isinstance(failed, ExecutionFailed)
    assert str(failed).startswith("output 'text': UnicodeEncodeError: ")


def test_outputs_of_other_names_are_left_out(tmp_path: Path) -> None:
    (outcome,) = answer(tmp_path, "return [pb_utils.InferenceResponse([y, pb_utils.Tensor('z', np.zeros(1))])]")
    assert list(outputs_of(outcome)) == ["y"]


def test_an_output_in_fortran_order_keeps_its_values(tmp_path: Path) -> None:
    body = "return [pb_utils.InferenceResponse([pb_utils.Tensor('y', np.arange(8, dtype=np.float32).reshape(4, 2).T)])]"
    (outcome,) = answer(tmp_path, body)
    output = outputs_of(outcome)["y"]
    assert output.flags.c_contiguous
    assert output.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_parameters_of_a_response_are_sent_along(tmp_path: Path) -> None:
    (outcome,) = answer(tmp_path, "return [pb_utils.InferenceResponse([y], parameters={'rank': 3, 'why': 'so'})]")
    assert outcome.parameters == {"rank": 3, "why": "so"}


# --- What there is not -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "named"),
    [
        ("request.get_response_sender()", "decoupled models"),
        ("request.exec()", "calling other models"),
        ("request.async_exec()", "calling other models"),
        ("pb_utils.InferenceRequest(model_name='m', requested_output_names=['y'], inputs=[])", "calling other models"),
        ("pb_utils.MetricFamily(name='n', description='d', kind=pb_utils.MetricFamily.COUNTER)", "metrics"),
        ("pb_utils.load_model('m')", "loading models"),
        ("pb_utils.unload_model('m')", "unloading models"),
        ("pb_utils.is_model_ready('m')", "asking for other models"),
        ("request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)", "executing a request again"),
    ],
)
def test_what_this_server_does_not_do_is_refused_by_name_on_use(tmp_path: Path, use: str, named: str) -> None:
    with (
        opened(write(tmp_path, telling(use))) as session,
        pytest.raises(Unsupported, match=f"not supported by this server: {named}"),
    ):
        ask(session)


def test_what_this_server_does_not_do_fails_a_load_that_uses_it(tmp_path: Path) -> None:
    source = telling("return ''").replace(
        "self.args = args", "pb_utils.MetricFamily('n', 'd', pb_utils.MetricFamily.GAUGE)"
    )
    model = load(write(tmp_path, source))
    with pytest.raises(
        InvalidArtifact, match=r"initialize\(\): not supported by this server: metrics .* \(model\.py, line 8\)"
    ):
        open_instance(model)


# --- Its surroundings --------------------------------------------------------------------------------------------


def test_a_model_logs_under_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = """
        log = pb_utils.Logger
        log.log_info("info 100%"); log.log_warn("warn"); log.log_error("error"); log.log_verbose("verbose")
        log.log("plain"); log.log("loud", log.ERROR)
        return ""
    """
    caplog.set_level(logging.DEBUG)
    with opened(write(tmp_path, telling(body))) as session:
        ask(session)
    assert {record.name for record in caplog.records} == {"preheat.python.m"}
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "info 100%"),
        ("WARNING", "warn"),
        ("ERROR", "error"),
        ("DEBUG", "verbose"),
        ("INFO", "plain"),
        ("ERROR", "loud"),
    ]


def test_a_model_knows_its_folder_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", telling("return pb_utils.get_model_dir()"))
    monkeypatch.chdir(tmp_path)
    with opened(Path("m")) as session:
        monkeypatch.chdir("/")
        assert ask(session) == str(folder / "1")
