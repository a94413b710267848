"""Every model of the repository that ships, held to the answers that are stored with its samples."""

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tests.e2e.server_process import GRPC_PORT, LOADED, ServerProcess
from tritonclient.utils import triton_to_np_dtype

MODEL_REPO = Path(__file__).resolve().parents[2] / "model_repo"
MODELS = sorted(path.parent.name for path in MODEL_REPO.glob("*/config.pbtxt"))
EXACT = [model for model in MODELS if not (MODEL_REPO / model / "data/tolerance.json").is_file()]
CLOSE = [model for model in MODELS if model not in EXACT]
# Two models are compiled, which takes a minute and a half on two idle cores.
STARTED_S = 420.0

pytestmark = [pytest.mark.compiles, pytest.mark.timeout(STARTED_S + 60)]

Sample = Mapping[str, NDArray[Any]]
Datatypes = Mapping[str, tuple[str, Sequence[int]]]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(MODEL_REPO, until=GRPC_PORT) as server:
        _wait_until_loaded(server)
        yield server
        assert not [line for line in server.log.splitlines() if " INFO " not in line]


def _wait_until_loaded(server: ServerProcess) -> None:
    """Block until every model is ready or has failed. Each wait is for the longest that others ever take."""
    deadline_s = time.monotonic() + STARTED_S
    while True:
        try:
            server.wait_for_log(LOADED)
        except AssertionError:
            if not server.running or time.monotonic() > deadline_s:
                raise
        else:
            return


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def test_every_model_has_samples_and_answers() -> None:
    assert len(MODELS) == 13
    for model in MODELS:
        document = _read(model, "perf_analyzer")
        answers = document["validation_data"] if model in EXACT else _read(model, "expected")["data"]
        assert len(answers) == len(document["data"]) >= 3


@pytest.mark.parametrize("model", EXACT)
def test_samples_are_answered_exactly(client: Any, model: str) -> None:
    document = _read(model, "perf_analyzer")
    inputs, outputs = _datatypes(client, model)
    for number, sample in enumerate(document["data"]):
        answer = _ask(client, model, _decode(sample, inputs), inputs)
        for name, expected in _decode(document["validation_data"][number], outputs).items():
            assert np.array_equal(answer.as_numpy(name)[0], expected), (number, name)


@pytest.mark.parametrize("model", CLOSE)
def test_samples_are_answered_within_the_tolerance(client: Any, model: str) -> None:
    expected = _read(model, "expected")["data"]
    tolerances = _read(model, "tolerance")
    inputs, _ = _datatypes(client, model)
    for number, sample in enumerate(_read(model, "perf_analyzer")["data"]):
        answer = _ask(client, model, _decode(sample, inputs), inputs)
        for name, tolerance in tolerances.items():
            _assert_close(answer.as_numpy(name)[0], np.array(expected[number][name]), **tolerance)


@pytest.mark.parametrize("model", [model for model in CLOSE if model.startswith("efficientnet")])
def test_pictures_in_one_batch_are_answered_within_the_tolerance(client: Any, model: str) -> None:
    expected = _read(model, "expected")["data"]
    inputs, _ = _datatypes(client, model)
    images = [_decode(sample, inputs)["image"] for sample in _read(model, "perf_analyzer")["data"]]
    answer = client.infer(model, [_input("image", np.stack(images), "FP32")])
    for scores, row in zip(answer.as_numpy("logits"), expected, strict=True):
        _assert_close(scores, np.array(row["logits"]), **_read(model, "tolerance")["logits"])


def _assert_close(
    actual: NDArray[np.float32],
    expected: NDArray[np.float64],
    *,
    relative_error: float = np.inf,
    cosine: float = -1,
    same_top_1: bool = False,
) -> None:
    length = np.linalg.norm(expected)
    assert np.linalg.norm(actual - expected) / length <= relative_error
    assert actual @ expected / (np.linalg.norm(actual) * length) >= cosine
    assert not same_top_1 or actual.argmax() == expected.argmax()


def _read(model: str, document: str) -> Any:
    path = MODEL_REPO / model / f"data/{document}.json"
    assert path.is_file(), f"{path} is missing; write it with: make models"
    return json.loads(path.read_text(encoding="utf-8"))


def _datatypes(client: Any, model: str) -> tuple[Datatypes, Datatypes]:
    """Datatype and shape of one row, by the names of the inputs and of the outputs."""
    metadata = client.get_model_metadata(model)
    inputs, outputs = (
        {tensor.name: (tensor.datatype, list(tensor.shape)[1:]) for tensor in tensors}
        for tensors in (metadata.inputs, metadata.outputs)
    )
    return inputs, outputs


def _decode(sample: Mapping[str, Any], datatypes: Datatypes) -> Sample:
    """Read one sample's tensors, without the batch axis, as perf_analyzer does."""
    return {name: _tensor(value, *datatypes[name]) for name, value in sample.items()}


def _tensor(value: Any, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    if isinstance(value, dict) and "b64" in value:
        return np.frombuffer(base64.b64decode(value["b64"]), triton_to_np_dtype(datatype)).reshape(shape)
    content, shape = (value["content"], value["shape"]) if isinstance(value, dict) else (value, shape)
    if datatype == "BYTES":
        content = [text.encode() for text in content]
    return np.array(content, triton_to_np_dtype(datatype)).reshape(shape)


def _ask(client: Any, model: str, sample: Sample, datatypes: Datatypes) -> Any:
    return client.infer(model, [_input(name, array[np.newaxis], datatypes[name][0]) for name, array in sample.items()])


def _input(name: str, array: NDArray[Any], datatype: str) -> Any:
    tensor = grpcclient.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor
