"""Models written in Python for Triton, served as they are: three made for this test, and the example that ships."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import ServerProcess
from tests.e2e.tensors import infer_inputs
from tritonclient.utils import InferenceServerException

# The same folders are served by Triton itself, when this server is compared with it.
MODELS = Path(__file__).parent / "triton_python_models"
EXAMPLE = Path(__file__).resolve().parents[2] / "model_repo/python_example"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    for folder in (*MODELS.iterdir(), EXAMPLE):
        (repository / folder.name).symlink_to(folder)
    with ServerProcess(repository) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def texts(*rows: Sequence[str | bytes]) -> Any:
    return np.array(rows, np.object_)


@pytest.mark.parametrize(
    "rows",
    [
        texts([b""]),
        texts([b"a\0b", "é".encode(), b"x" * 100_000]),
        texts(*[[b"\xff\xfe"]] * 8),
    ],
    ids=["empty", "long", "eight rows"],
)
def test_bytes_come_back_as_they_went(client: Any, rows: Any) -> None:
    result = client.infer("identity_bytes", infer_inputs({"INPUT0": rows}), request_id="r1")
    assert result.as_numpy("OUTPUT0").tolist() == rows.tolist()
    assert result.get_response().id == "r1"


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("wanted", [("SUM", "DIFFERENCE"), ("DIFFERENCE",)])
def test_sums_and_differences(client: Any, rows: int, wanted: tuple[str, ...]) -> None:
    first, second = np.random.default_rng(rows).normal(size=(2, rows, 4)).astype(np.float32)
    result = client.infer(
        "add_sub",
        infer_inputs({"INPUT0": first, "INPUT1": second}),
        outputs=[grpcclient.InferRequestedOutput(name) for name in wanted],
    )
    expected = {"SUM": 2 * first + 2 * second, "DIFFERENCE": 2 * first - 2 * second}
    answer = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
    assert sorted(answer) == sorted(wanted)
    for name in wanted:
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-6)


def test_what_a_model_decides_in_code_is_what_clients_are_told(client: Any) -> None:
    config = client.get_model_config("add_sub").config
    assert (config.backend, config.max_batch_size, config.HasField("dynamic_batching")) == ("python", 4, True)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("SUM", [4]), ("DIFFERENCE", [4])]
    metadata = client.get_model_metadata("add_sub")
    assert metadata.platform == "python"
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [
        ("INPUT0", "FP32", [-1, 4]),
        ("INPUT1", "FP32", [-1, 4]),
    ]


def test_one_request_of_a_batch_fails_and_the_others_do_not(client: Any) -> None:
    def root(value: float) -> float | str:
        inputs = infer_inputs({"VALUE": np.array([[value]])})
        try:
            result = client.infer("fail_one", inputs, request_id=str(value))
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"
        assert result.as_numpy("BATCH").tolist() == [[4]]
        return float(result.as_numpy("ROOT")[0, 0])

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(root, [1.0, -2.0, 9.0, 16.0]))
    assert answers == [1, "StatusCode.INVALID_ARGUMENT request -2.0: -2.0 has no square root", 3, 4]


def test_the_example_answers_its_samples_as_expected(client: Any) -> None:
    samples = json.loads((EXAMPLE / "data/perf_analyzer.json").read_text())
    for data, expected in zip(samples["data"], samples["validation_data"], strict=True):
        assert count(client, *data["TEXT"]) == {name: [numbers] for name, numbers in expected.items()}


def test_the_example_counts_each_row_of_a_batch(client: Any) -> None:
    assert count(client, *["a b"] * 31, "c") == {"CHARACTERS": [[3]] * 31 + [[1]], "WORDS": [[2]] * 31 + [[1]]}


def test_the_example_refuses_what_is_no_text(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="TEXT is not UTF-8") as refused:
        count(client, b"\xff")
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def count(client: Any, *rows: str | bytes) -> Mapping[str, Any]:
    result = client.infer("python_example", infer_inputs({"TEXT": texts(*([row] for row in rows))}))
    return {name: result.as_numpy(name).tolist() for name in ("CHARACTERS", "WORDS")}


def test_models_log_under_their_names(server: ServerProcess) -> None:
    assert "INFO    preheat.python.add_sub: add_sub is ready on CPU" in server.log
    assert "INFO    preheat.python.python_example: python_example counts in TYPE_INT32" in server.log
