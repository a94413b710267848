"""Damage to a compile cache, on a model that is really compiled: it costs the time to compile again, and nothing else.

``DAMAGE_TRIALS=200 pytest tests/integration/test_cache_damage.py`` tries more.
"""

import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.encoders import Reference, bucketed, make_batch, write_encoder
from tests.unit.builders import Replies

from preheat.cache import CompileCache
from preheat.messages import InferRequest, InferResponse, InputTensor
from preheat.models.lifecycle import Lifecycle
from preheat.models.loader import Loader, LoadLimits
from preheat.plugins import load_backend
from preheat.repository.scan import ModelFolder, read_model

pytestmark = pytest.mark.compiles

TRIALS = int(os.environ.get("DAMAGE_TRIALS", "2"))
LIMITS = LoadLimits(max_queue_requests=10, max_queue_bytes=2**20, cores=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = write_encoder(
        tmp_path_factory.mktemp("damaged"), "encoder", "torch_compile", rows=1, parameters=bucketed("8")
    )
    model = read_model(folder)
    assert isinstance(model, ModelFolder)
    return model


@pytest.fixture(scope="module")
def filled(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("filled") / "cache"
    directory.mkdir()
    assert load_and_ask(model, directory) == "compiled"
    assert load_and_ask(model, directory) == "from the cache"
    return directory


def load_and_ask(model: ModelFolder, directory: Path) -> str:
    """Load the model with the cache in ``directory``, and hold its answer against the reference; whether it was in."""
    batch = make_batch(np.random.default_rng(0), 1, 5)
    with closing(CompileCache(directory, max_bytes=2**30)) as cache:
        loader = Loader(load_backend, limits=LIMITS, observer=lambda _: None, cache=cache)
        loaded = loader.load(model, Lifecycle("encoder", 1, observer=lambda _: None))
        inputs = tuple(InputTensor(name, "INT64", array.shape, array.tobytes()) for name, array in batch.items())
        replies = Replies()
        loaded.handle.submit(InferRequest("encoder", "", "", inputs), replies)
        answer = replies.wait()
        assert isinstance(answer, InferResponse)
        expected = Reference(model.path).answer(batch)
        for output in answer.outputs:
            np.testing.assert_allclose(output.array, expected[output.name], rtol=1e-4, atol=1e-4)
        loaded.handle.close()
    return "from the cache" if loaded.event.cached == loaded.event.compiled else "compiled"


def damage(directory: Path, seed: int) -> Path:
    """Change one to four bytes of one of the stored files; which."""
    dice = np.random.default_rng(seed)
    files = sorted(path for path in directory.glob("*/*/**/*") if path.is_file() and path.stat().st_size)
    victim = files[dice.integers(len(files))]
    content = np.frombuffer(victim.read_bytes(), np.uint8).copy()
    places = dice.integers(len(content), size=dice.integers(1, 5))
    content[places] ^= dice.integers(1, 256, size=len(places), dtype=np.uint8)
    victim.write_bytes(content.tobytes())
    return victim


@pytest.mark.timeout(60 + 60 * TRIALS)
@pytest.mark.parametrize("seed", range(TRIALS))
def test_bytes_that_changed_in_a_file_of_the_cache_are_never_run(
    seed: int, model: ModelFolder, filled: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(filled, tmp_path / "cache")
    victim = damage(directory, seed)
    assert load_and_ask(model, directory) == "compiled", victim.name
    assert load_and_ask(model, directory) == "from the cache"
