"""Dropping in a quantized artifact: a good one takes over, a wrong one stays aside with its figures, and back again."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from onnx import numpy_helper
from tests.e2e.server_process import ServerProcess
from tests.e2e.speaker import Asking, wait_until
from tests.e2e.tensors import infer_inputs
from tests.e2e.test_repo_command import repo
from tests.sentences import SENTENCES, tokenize

MODEL_REPO = Path(__file__).parents[2] / "model_repo"
CANARY = """
parameters { key: "preheat.canary.samples" value { string_value: "8" } }
parameters { key: "preheat.canary.seconds" value { string_value: "2" } }
parameters { key: "preheat.canary.min_cosine" value { string_value: "0.98" } }
parameters { key: "preheat.canary.max_slowdown" value { string_value: "20" } }
"""
OPTIONS = ("--settle-seconds", "0.3", "--allow-model-upload", "true")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository" / "minilm_onnx"
    shutil.copytree(MODEL_REPO / "minilm_onnx" / "1", folder / "1")
    (folder / "config.pbtxt").write_text((MODEL_REPO / "minilm_onnx" / "config.pbtxt").read_text() + CANARY)
    return tmp_path / "repository"


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, options=OPTIONS) as server:
        yield server


class AskingSentences(Asking):
    """Asks for the embeddings of sentences, and keeps which version answered."""

    @staticmethod
    def ask(client: Any) -> int:
        inputs = infer_inputs({name: array[:2] for name, array in tokenize(SENTENCES).items()})
        return int(client.infer("minilm_onnx", inputs).get_response().model_version)


def wrongly_quantized(target: Path) -> Path:
    """The quantized graph with the scales of every fourth layer's weights ten times too large."""
    model = onnx.load(MODEL_REPO / "minilm_onnx_int8" / "1" / "model.onnx")
    scales = [
        each for each in model.graph.initializer if each.name.endswith("_scale") and "weight" in each.name.lower()
    ]
    scales = scales or [each for each in model.graph.initializer if each.name.endswith("_scale")]
    for scale in scales[::4]:
        value = numpy_helper.to_array(scale)
        scale.CopyFrom(numpy_helper.from_array((value * 10).astype(np.float32), scale.name))
    onnx.save(model, target)
    return target


def test_a_quantized_artifact_takes_over_only_if_it_answers_alike(
    tmp_path: Path, repository: Path, server: ServerProcess
) -> None:
    with (
        grpcclient.InferenceServerClient(server.grpc_address) as client,
        AskingSentences(server) as asking,
    ):
        code, text = repo("push", "minilm_onnx", wrongly_quantized(tmp_path / "model.onnx"), server=server)
        assert code == 1
        assert "the canary stays aside, and version 1 goes on" in text
        found = re.search(r"agrees too little: cosine (-?\d\.\d+), allowed is 0\.98 \(8 live requests: ", text)
        assert found is not None, text
        assert float(found[1]) < 0.98
        assert AskingSentences.ask(client) == 1
        good = MODEL_REPO / "minilm_onnx_int8" / "1" / "model.onnx"
        assert repo("push", "minilm_onnx", good, server=server) == (0, "minilm_onnx/3 is READY\n")
        wait_until(lambda: AskingSentences.ask(client) == 3, "the good one did not take over")
        assert "minilm_onnx/3 takes over: " in server.log
        code, text = repo("rollback", "minilm_onnx", server=server)
        assert (code, "minilm_onnx/1 serves again, which was in memory still" in text) == (0, True)
        assert AskingSentences.ask(client) == 1
        assert not (repository / "minilm_onnx" / "3").exists()
    assert asking.failures == []
    assert set(asking.answers) == {1, 3}
