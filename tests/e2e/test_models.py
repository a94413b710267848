"""Models of the repository that ships, asked by tritonclient in each of its ways."""

import asyncio
import importlib.util
import queue
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from numpy.typing import NDArray
from safetensors.torch import load_file
from tests.e2e.server_process import LIMIT_S, ServerProcess
from tests.e2e.tensors import Arrays, infer_inputs
from tests.sentences import SENTENCES, tokenize

MODEL_REPO = Path(__file__).resolve().parents[2] / "model_repo"
ARTIFACTS = ("minilm/tokenizer.json", "minilm/1/model.safetensors", "minilm_onnx/1/model.onnx")
EMBEDDERS = ("minilm", "minilm_onnx")
# Not those that take a minute to compile.
CHOSEN = ("--model-control-mode", "explicit", "--load-models", ",".join(("identity", *EMBEDDERS)))
MAX_BATCH = 32
RELATIVE = 1e-4
# Long ones cost a second each, and go in a batch of their own.
SHORT = [position for position, sentence in enumerate(SENTENCES) if len(sentence) < 80]
LONG = [position for position in range(len(SENTENCES)) if position not in SHORT]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    missing = [name for name in ARTIFACTS if not (MODEL_REPO / name).is_file()]
    assert not missing, f"{missing} missing from {MODEL_REPO}; write them with: make models"
    with ServerProcess(MODEL_REPO, options=CHOSEN) as server:
        yield server
        assert not [line for line in server.log.splitlines() if " INFO " not in line]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> NDArray[np.float32]:
    """What PyTorch says to each sentence alone, so that padding cannot hide in both answers."""
    network = _network()
    with torch.inference_mode():
        rows = [network(**_as_torch(tokenize([sentence]))).numpy() for sentence in SENTENCES]
    return np.concatenate(rows)


def _network() -> torch.nn.Module:
    """Load minilm as its author would: with torch, without the server."""
    spec = importlib.util.spec_from_file_location("minilm_reference", MODEL_REPO / "minilm/1/model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: torch.nn.Module = module.build_model()
    network.load_state_dict(load_file(MODEL_REPO / "minilm/1/model.safetensors"), strict=True, assign=True)
    return network.eval()


def _as_torch(arrays: Arrays) -> Mapping[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _tokens(positions: list[int]) -> Arrays:
    return tokenize([SENTENCES[position] for position in positions])


def _chosen(batch_size: int) -> list[int]:
    """Other sentences for each batch size."""
    return [SHORT[(batch_size + place) % len(SHORT)] for place in range(batch_size)]


def _assert_same(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Compare row by row, relative to the length of the expected row."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    distance = np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distance.max() <= RELATIVE


@pytest.mark.parametrize("batch_size", range(1, MAX_BATCH + 1))
@pytest.mark.parametrize("model", EMBEDDERS)
def test_embeddings_are_those_of_pytorch_at_every_batch_size(
    client: Any, reference: NDArray[np.float32], model: str, batch_size: int
) -> None:
    positions = _chosen(batch_size)
    result = client.infer(model, infer_inputs(_tokens(positions)), request_id=f"{batch_size}")
    _assert_same(result.as_numpy("sentence_embedding"), reference[positions])
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (model, "1", f"{batch_size}")


@pytest.mark.parametrize("model", EMBEDDERS)
def test_long_sentences_beside_short_ones(client: Any, reference: NDArray[np.float32], model: str) -> None:
    positions = [*LONG, *SHORT[:2]]
    result = client.infer(model, infer_inputs(_tokens(positions)))
    _assert_same(result.as_numpy("sentence_embedding"), reference[positions])


@pytest.mark.parametrize("model", EMBEDDERS)
def test_async_infer_answers_every_callback_with_its_own(
    client: Any, reference: NDArray[np.float32], model: str
) -> None:
    batches = {size: _chosen(size) for size in (1, 2, 7, MAX_BATCH)}
    answers: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    for size, positions in batches.items():
        client.async_infer(
            model,
            infer_inputs(_tokens(positions)),
            callback=lambda result, error, size=size: answers.put((size, result, error)),
        )
    received = [answers.get(timeout=LIMIT_S) for _ in batches]
    assert sorted(size for size, _, _ in received) == list(batches)
    for size, result, error in received:
        assert error is None
        _assert_same(result.as_numpy("sentence_embedding"), reference[batches[size]])


@pytest.mark.parametrize("model", EMBEDDERS)
def test_the_aio_client_gets_the_same(server: ServerProcess, reference: NDArray[np.float32], model: str) -> None:
    batches = [_chosen(size) for size in (1, 3, 8, MAX_BATCH)]

    async def embed_all() -> list[Any]:
        async with aioclient.InferenceServerClient(server.grpc_address) as client:
            assert await client.is_model_ready(model)
            return await asyncio.gather(*(client.infer(model, infer_inputs(_tokens(batch))) for batch in batches))

    for batch, result in zip(batches, asyncio.run(embed_all()), strict=True):
        _assert_same(result.as_numpy("sentence_embedding"), reference[batch])


@pytest.mark.parametrize("model", EMBEDDERS)
def test_outputs_asked_for_by_name_are_those_given(client: Any, model: str) -> None:
    wanted = [grpcclient.InferRequestedOutput("sentence_embedding")]
    result = client.infer(model, infer_inputs(_tokens([0])), outputs=wanted, model_version="1")
    assert [output.name for output in result.get_response().outputs] == ["sentence_embedding"]


@pytest.mark.parametrize("rows", [1, 2, 3, 63, 64])
def test_identity_answers_what_it_was_asked(client: Any, rows: int) -> None:
    array = np.random.default_rng(rows).random((rows, 5), np.float32)
    assert np.array_equal(client.infer("identity", infer_inputs({"INPUT0": array})).as_numpy("OUTPUT0"), array)


def test_identity_answers_callbacks_and_the_aio_client(server: ServerProcess, client: Any) -> None:
    arrays = [np.full((rows, 2), rows, np.float32) for rows in range(1, 33)]
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    for array in arrays:
        client.async_infer(
            "identity", infer_inputs({"INPUT0": array}), callback=lambda result, error: answers.put((result, error))
        )
    received = [answers.get(timeout=LIMIT_S) for _ in arrays]
    assert {error for _, error in received} == {None}
    by_rows = sorted((result.as_numpy("OUTPUT0") for result, _ in received), key=len)
    assert all(map(np.array_equal, by_rows, arrays))

    async def ask_all() -> list[Any]:
        async with aioclient.InferenceServerClient(server.grpc_address) as aio:
            requests = (aio.infer("identity", infer_inputs({"INPUT0": array})) for array in arrays)
            return await asyncio.gather(*requests)

    results = asyncio.run(ask_all())
    assert all(map(np.array_equal, (result.as_numpy("OUTPUT0") for result in results), arrays))


def test_a_message_far_beyond_the_default_limit_of_grpc_is_answered(client: Any) -> None:
    array = np.random.default_rng(1).random((64, 2**16), np.float32)  # 16 MiB; the default is 4
    assert np.array_equal(client.infer("identity", infer_inputs({"INPUT0": array})).as_numpy("OUTPUT0"), array)


def test_the_server_describes_itself(client: Any) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "preheat"
    assert metadata.version
    assert "model_configuration" in metadata.extensions
    assert client.is_server_live()
    assert client.is_server_ready()


@pytest.mark.parametrize("model", EMBEDDERS)
def test_the_embedders_describe_themselves(client: Any, model: str) -> None:
    metadata = client.get_model_metadata(model)
    assert (metadata.name, list(metadata.versions)) == (model, ["1"])
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    assert inputs == {"input_ids": ("INT64", [-1, -1]), "attention_mask": ("INT64", [-1, -1])}
    outputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs}
    assert outputs == {"sentence_embedding": ("FP32", [-1, 384])}
    config = client.get_model_config(model).config
    assert (config.name, config.max_batch_size) == (model, MAX_BATCH)
    assert {tensor.name for tensor in config.input} == set(inputs)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("sentence_embedding", [384])]
    assert config.HasField("dynamic_batching")
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, "1")
    assert not client.is_model_ready(model, "2")


def test_metadata_comes_as_json_too(client: Any) -> None:
    assert client.get_model_metadata("identity", as_json=True)["inputs"] == [
        {"name": "INPUT0", "datatype": "FP32", "shape": ["-1", "-1"]}
    ]
    assert client.get_model_config("identity", as_json=True)["config"]["backend"] == "double"


@pytest.mark.parametrize("model", EMBEDDERS)
def test_sequences_up_to_512_tokens_and_no_longer(client: Any, model: str) -> None:
    longest = {name: np.ones((1, 512), np.int64) for name in ("input_ids", "attention_mask")}
    embedding = client.infer(model, infer_inputs(longest)).as_numpy("sentence_embedding")
    assert np.linalg.norm(embedding) == pytest.approx(1, rel=RELATIVE)
    too_long = {name: np.ones((1, 513), np.int64) for name in longest}
    with pytest.raises(grpcclient.InferenceServerException, match="512") as refusal:
        client.infer(model, infer_inputs(too_long))
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
