"""A load gives way to requests: how long it paused for them is in the line that says that the model is READY."""

import re
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows

PAUSES = r"newcomer/1 READY: .* s of that in pauses for others\)"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    write_model(folder, "serving", echo_config())
    write_model(folder, "newcomer", echo_config(parameters={"seconds": 0.05}))
    return folder


@pytest.mark.parametrize(
    ("asked", "share", "pauses"),
    [(True, "0.125", True), (False, "0.125", False), (True, "1", False)],
    ids=["beside requests", "with nobody to give way to", "with all of the time"],
)
def test_a_load_pauses_while_others_are_asked(repository: Path, *, asked: bool, share: str, pauses: bool) -> None:
    options = ["--model-control-mode", "explicit", "--load-models", "serving", "--load-share", share]
    with ServerProcess(repository, options=options) as server:
        server.wait_for_log("ready: 1 model versions are hot")
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            inputs = infer_inputs({"INPUT0": unique_rows(1, start=0)})
            if asked:
                client.infer("serving", inputs)
            client.load_model("newcomer")
            assert client.infer("newcomer", inputs).as_numpy("OUTPUT0").tolist() == [[0, 1, 2, 3]]
        server.wait_for_log("newcomer/1 READY")
        assert bool(re.search(PAUSES, server.log)) is pauses
