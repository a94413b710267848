"""A model that comes to a server that serves is compiled apart, at low priority, and then loaded from the cache."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.encoders import Reference, bucketed, make_batch, write_encoder
from tests.e2e.scrape import scrape
from tests.e2e.server_process import LIMIT_S, ServerProcess, server_environment
from tests.e2e.tensors import infer_inputs

EXPLICIT = ("--model-control-mode", "explicit", "--load-models", "serving")
APART = "newcomer/1 is compiled by a process of its own, at low priority"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    write_encoder(folder, "serving", "eager")
    write_encoder(folder, "newcomer", "torch_compile", rows=1, instances=2, parameters=bucketed("8"))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def server(repository: Path, cache: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, options=[*EXPLICIT, "--cache-dir", str(cache)]) as server:
        yield server


def load(server: ServerProcess, repository: Path) -> None:
    """Load the newcomer, and see it answer."""
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        client.load_model("newcomer", client_timeout=LIMIT_S)
        batch = make_batch(np.random.default_rng(0), 1, 5)
        result = client.infer("newcomer", infer_inputs(batch))
    for name, expected in Reference(repository / "newcomer").answer(batch).items():
        np.testing.assert_allclose(result.as_numpy(name), expected, rtol=1e-4, atol=1e-4)
    assert scrape(server).total("preheat_cold_compiles_total", model="newcomer") == 0


def test_a_model_that_is_not_in_the_cache_is_compiled_by_a_process_of_its_own(
    server: ServerProcess, repository: Path
) -> None:
    load(server, repository)
    assert APART in server.log
    # By the other process, and then by this one.
    assert re.search(r"newcomer/1 instance 0: batch 1, sequence 8 \(1 of 1\), pass 1: \S+ s, 1 compiled", server.log)
    assert re.search(r"newcomer/1 READY: .*, 1 compiled, 1 of them from the cache", server.log)


def test_a_model_that_was_compiled_ahead_is_loaded_at_once(
    server: ServerProcess, repository: Path, cache: Path
) -> None:
    command = [sys.executable, "-m", "preheat", "compile", str(repository / "newcomer"), "--cache-dir", str(cache)]
    done = subprocess.run(command, env=server_environment(), capture_output=True, text=True, check=True)
    assert "newcomer/1: 1 compiled, 0 of them found in the cache" in done.stdout
    load(server, repository)
    assert APART not in server.log
    assert re.search(r"newcomer/1 READY: .*, 1 compiled, 1 of them from the cache", server.log)


def test_a_model_that_cannot_be_loaded_fails_by_its_own_reason(server: ServerProcess, repository: Path) -> None:
    (repository / "newcomer" / "1" / "model.py").write_text("raise ValueError('not today')")
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        with pytest.raises(Exception, match="not today"):
            client.load_model("newcomer", client_timeout=LIMIT_S)
        assert client.is_model_ready("serving")


def test_explain_shows_the_buckets_and_what_each_was_compiled_to(repository: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "preheat", "explain", str(repository / "newcomer"), "--cache-dir", str(cache)]
    cold, warm = (
        subprocess.run(command, env=server_environment(), capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert re.search(r"^batch 1, sequence 8 +1 graph +(\d+\.\d\d) +\1 ", cold, re.MULTILINE)
    assert re.search(r"^batch 1, sequence 8 +1 graph \(cache\) +\d+\.\d\d +\d+\.\d\d ", warm, re.MULTILINE)
    assert "s when it was compiled" in warm
    assert "a size beyond its buckets: refuse" in warm
