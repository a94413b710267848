"""Ready means hot: what is announced has nothing left to compile, for any request that it takes; and a counter sees it.

The compiled encoders have buckets that hardly any request is of the size of, so that all is padded.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.encoders import IGNORES_MASK, Batch, Reference, bucketed, make_batch, write_encoder
from tests.e2e.scrape import scrape, scrape_until
from tests.e2e.server_process import ServerProcess
from tests.e2e.tensors import infer_inputs
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.compiles

COLD = "preheat_cold_compiles_total"
SLOW_START_S = 300.0
# The first has 6 batch sizes times 3 lengths, on 3 threads.
HOT = ("many", "dynamic", "int8", "plain")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hot")
    write_encoder(folder, "many", "torch_compile", rows=32, instances=3, parameters=bucketed("8,24,64"))
    write_encoder(folder, "dynamic", "torch_compile", instances=2, parameters={"dynamic": "true"})
    int8 = {"quantization": "int8_dynamic", "compile": "true", "preheat.buckets": "4"}
    write_encoder(folder, "int8", "torchao", instances=2, parameters=bucketed("64", int8))
    write_encoder(folder, "plain", "eager", instances=2, parameters=bucketed("8,24,64"))
    for name, outside in {"compiling": "compile", "eager_beyond": "eager", "refusing": "refuse"}.items():
        parameters = bucketed("8", {"preheat.outside_buckets": outside})
        write_encoder(folder, name, "torch_compile", rows=1, parameters=parameters)
    write_encoder(folder, "mask_ignored", "torch_compile", pooling=IGNORES_MASK, parameters=bucketed("8"))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, limit_s=SLOW_START_S) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture(scope="module")
def reference(repository: Path) -> Reference:
    return Reference(repository / "many")


def assert_answers(
    client: grpcclient.InferenceServerClient, model: str, batch: Batch, reference: Reference, tolerance: float = 1e-4
) -> None:
    result = client.infer(model, infer_inputs(batch))
    for name, expected in reference.answer(batch).items():
        actual = result.as_numpy(name)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max(), (model, name, expected.shape)


def cold(server: ServerProcess, model: str) -> float:
    return scrape(server).total(COLD, model=model)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("model", HOT)
def test_requests_of_any_size_at_once_compile_nothing_and_are_answered_as_if_unpadded(
    server: ServerProcess, client: grpcclient.InferenceServerClient, reference: Reference, model: str
) -> None:
    most_rows = 32 if model == "many" else 4
    tolerance = 0.1 if model == "int8" else 1e-4

    def ask(seed: int) -> None:
        dice = np.random.default_rng(seed)
        batch = make_batch(dice, int(dice.integers(1, most_rows + 1)), int(dice.integers(1, 65)))
        # Clients send inputs in any order.
        batch = {name: batch[name] for name in dice.permutation(list(batch)).tolist()}
        assert_answers(client, model, batch, reference, tolerance)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(1000 if model == "many" else 150)))
    assert cold(server, model) == 0
    assert scrape(server).total("preheat_compilations_total", model=model) >= (18 if model == "many" else 0)


def test_every_series_of_cold_compilations_is_there_from_the_start(server: ServerProcess) -> None:
    found = scrape(server)
    for instance in "012":
        for kind in ("graph", "autotuning", "cuda_graph", "engine", "session", "eager"):
            assert found.total(COLD, model="many", version="1", instance=instance, kind=kind) == 0


def test_a_shape_that_was_not_warmed_is_counted_and_told(
    server: ServerProcess, client: grpcclient.InferenceServerClient, reference: Reference
) -> None:
    batch = make_batch(np.random.default_rng(0), 1, 9)
    assert_answers(client, "compiling", batch, reference)
    scrape_until(server, lambda found: found.total(COLD, model="compiling", kind="graph") == 1)
    server.wait_for_log("compiling/1 instance 0 is not hot: a request waited")
    assert_answers(client, "compiling", batch, reference)
    assert cold(server, "compiling") == 1


def test_a_shape_beyond_the_buckets_runs_eagerly_where_that_is_asked_for_and_is_counted(
    server: ServerProcess, client: grpcclient.InferenceServerClient, reference: Reference
) -> None:
    assert_answers(client, "eager_beyond", make_batch(np.random.default_rng(0), 1, 9), reference)
    assert_answers(client, "eager_beyond", make_batch(np.random.default_rng(0), 1, 5), reference)
    scrape_until(server, lambda found: found.total(COLD, model="eager_beyond") == 1)
    assert scrape(server).total(COLD, model="eager_beyond", kind="eager") == 1


def test_a_shape_beyond_the_buckets_is_refused_by_the_buckets_where_nothing_else_is_asked_for(
    server: ServerProcess, client: grpcclient.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException, match=r"'ids' .*has 9 in dimension 'sequence'.*every bucket: 8"):
        client.infer("refusing", infer_inputs(make_batch(np.random.default_rng(0), 1, 9)))
    assert cold(server, "refusing") == 0


def test_a_model_that_takes_padding_for_data_is_refused_it(
    server: ServerProcess, client: grpcclient.InferenceServerClient
) -> None:
    assert not client.is_model_ready("mask_ignored")
    assert "padding changes the answer: output 'pooled' of sequence 1 padded to 8 differs by" in server.log
