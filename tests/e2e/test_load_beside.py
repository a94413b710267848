"""A model that comes to a server that serves is compiled apart, at low priority, and then loaded from the cache."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.encoders import Reference, bucketed, make_batch, write_encoder
from tests.e2e.scrape import scrape
from tests.e2e.server_process import LIMIT_S, ServerProcess, server_environment
from tests.e2e.tensors import infer_inputs
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.compiles

EXPLICIT = ("--model-control-mode", "explicit", "--load-models", "serving")
APART = "newcomer/1 is compiled by a process of its own, at low priority"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    write_encoder(folder, "serving", "eager")
    write_encoder(folder, "newcomer", "torch_compile", rows=1, instances=2, parameters=bucketed("8"))
    write_encoder(folder, "broken", "torch_compile", rows=1, parameters=bucketed("8"))
    (folder / "broken" / "1" / "model.py").write_text("raise ValueError('not today')")
    return folder


@pytest.fixture(scope="module")
def cache(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache into which a server that serves has had the newcomer compiled."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    with serving(repository, folder) as server:
        load(server, repository)
        assert APART in server.log
        assert "could not be compiled apart" not in server.log
        # By the other process, and then by this one.
        assert re.search(
            r"newcomer/1 instance 0: batch 1, sequence 8 \(1 of 1\), pass 1: \S+ s, 1 compiled", server.log
        )
        assert re.search(r"newcomer/1 READY: .*, 1 compiled, 1 of them from the cache", server.log)
        assert server.terminate() == 0
    return folder


def serving(repository: Path, cache: Path) -> ServerProcess:
    return ServerProcess(repository, options=[*EXPLICIT, "--cache-dir", str(cache)])


def load(server: ServerProcess, repository: Path) -> None:
    """Load the newcomer, and see it answer."""
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        client.load_model("newcomer", client_timeout=LIMIT_S)
        batch = make_batch(np.random.default_rng(0), 1, 5)
        result = client.infer("newcomer", infer_inputs(batch))
    for name, expected in Reference(repository / "newcomer").answer(batch).items():
        np.testing.assert_allclose(result.as_numpy(name), expected, rtol=1e-4, atol=1e-4)
    assert scrape(server).total("preheat_cold_compiles_total", model="newcomer") == 0


def run(command: str, repository: Path, cache: Path) -> str:
    """What ``preheat COMMAND`` says of the newcomer."""
    arguments = [sys.executable, "-m", "preheat", command, str(repository / "newcomer"), "--cache-dir", str(cache)]
    return subprocess.run(arguments, env=server_environment(), capture_output=True, text=True, check=True).stdout


def test_a_model_that_was_compiled_before_is_loaded_at_once_and_one_that_is_broken_says_why(
    repository: Path, cache: Path
) -> None:
    with serving(repository, cache) as server:
        load(server, repository)
        assert APART not in server.log
        assert re.search(r"newcomer/1 READY: .*, 1 compiled, 1 of them from the cache", server.log)
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            with pytest.raises(InferenceServerException, match="not today"):
                client.load_model("broken", client_timeout=LIMIT_S)
            assert client.is_model_ready("serving")


def test_what_is_compiled_ahead_is_compiled_once(repository: Path, cache: Path, tmp_path: Path) -> None:
    assert "newcomer/1: 1 compiled, 0 of them found in the cache" in run("compile", repository, tmp_path / "another")
    assert "newcomer/1: 1 compiled, 1 of them found in the cache" in run("compile", repository, cache)


def test_explain_shows_the_buckets_and_what_each_was_compiled_to(repository: Path, cache: Path) -> None:
    shown = run("explain", repository, cache)
    assert re.search(r"^batch 1, sequence 8 +1 graph \(cache\) +\d+\.\d\d +\d+\.\d\d ", shown, re.MULTILINE)
    assert "s when it was compiled" in shown
    assert "a size beyond its buckets: refuse" in shown
