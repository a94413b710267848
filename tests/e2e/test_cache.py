"""Servers that share a compile cache: the second is warm, two at once compile once, and damage costs time only."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.encoders import Reference, bucketed, make_batch, write_encoder
from tests.e2e.server_process import GRPC_PORT, LIMIT_S, ServerProcess, serve_command, server_environment
from tests.e2e.tensors import infer_inputs

from preheat.cache import Integrity, inventory, verify

pytestmark = pytest.mark.compiles

COLD = "1 compiled, 0 of them from the cache"
WARM = "1 compiled, 1 of them from the cache"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_encoder(folder, "encoder", "torch_compile", rows=1, parameters=bucketed("8"))
    return folder


@pytest.fixture(scope="module")
def filled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a first server has filled."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    assert load(repository, cache) == COLD
    return cache


def load(repository: Path, cache: Path) -> str:
    """Start a server, see the model answer as it should, and stop; how many graphs it compiled."""
    with ServerProcess(repository, options=["--cache-dir", str(cache)]) as server:
        batch = make_batch(np.random.default_rng(0), 1, 5)
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            result = client.infer("encoder", infer_inputs(batch))
        for name, expected in Reference(repository / "encoder").answer(batch).items():
            np.testing.assert_allclose(result.as_numpy(name), expected, rtol=1e-4, atol=1e-4)
        assert server.terminate() == 0
        assert list((cache / "work").iterdir()) == []
        return server.wait_for_log(r"READY: .*, (\d+ compiled, \d+ of them from the cache)")[1]


def test_what_one_server_compiled_the_next_finds(repository: Path, filled: Path) -> None:
    assert load(repository, filled) == WARM


def test_a_stored_library_of_which_one_bit_changed_is_never_run(repository: Path, filled: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    library = max(cache.glob("*/*/files/**/*.so"), key=lambda path: path.stat().st_size)
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    log = _start(repository, cache)
    assert re.search(rf"dropped the damaged entry of encoder/1: .*{library.name} does not have its checksum", log)
    assert COLD in log
    assert all(verify(cache, entry).integrity is Integrity.INTACT for entry in inventory(cache))


def test_of_two_servers_that_start_at_once_one_compiles(repository: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        logs = list(pool.map(lambda _: _start(repository, tmp_path / "cache"), range(2)))
    assert sorted(found for log in logs for found in (COLD, WARM) if found in log) == [COLD, WARM]


def _start(repository: Path, cache: Path) -> str:
    with ServerProcess(repository, options=["--cache-dir", str(cache)]) as server:
        return server.log


def test_a_server_that_is_killed_while_it_loads_is_in_nobodys_way(
    repository: Path, filled: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    with ServerProcess(repository, options=["--cache-dir", str(cache)], until=GRPC_PORT) as server:
        server.kill()
    assert len(list((cache / "work").iterdir())) > 0
    assert load(repository, cache) == WARM


def test_a_cache_directory_that_cannot_be_is_refused_at_the_start(repository: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    command = serve_command(repository, options=["--cache-dir", str(tmp_path)])
    done = subprocess.run(
        command, env=server_environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 1
    assert f"preheat: other users may write to the cache directory {tmp_path}" in done.stderr
