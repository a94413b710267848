"""A server follows its repositories while clients ask: what is dropped in is served, and nobody notices."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import ServerProcess, echo_config, write_model
from tests.e2e.speaker import MOMENTS, SPEAKER, SPEAKER_CONFIG, Asking, ask, speak, wait_until, write_speaker
from tests.e2e.tensors import infer_inputs
from tritonclient.utils import InferenceServerException

ROWS = np.arange(8, dtype=np.int64).reshape(2, 4)
# Files need to rest for a moment, as they do for operators.
RESTING = ("--settle-seconds", "0.3")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_speaker(tmp_path)
    return tmp_path


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, options=RESTING) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def wait_for_answer(client: Any, expected: int) -> None:
    wait_until(lambda: ask(client) == expected, f"no version answers {expected}")


def index(client: Any) -> dict[tuple[str, str], tuple[str, str]]:
    rows = client.get_model_repository_index().models
    return {(row.name, row.version): (row.state, row.reason) for row in rows}


def test_whatever_is_dropped_in_is_served_and_no_request_fails(
    repository: Path, server: ServerProcess, client: Any
) -> None:
    folder = repository / "speaker"
    with Asking(server) as asking:
        # A version that is copied, one that is renamed in, one that changes where it is.
        speak(folder, 2, 20)
        wait_for_answer(client, 20)
        speak(repository / ".aside", 3, 30)
        (repository / ".aside" / "3").rename(folder / "3")
        wait_for_answer(client, 30)
        speak(folder, 3, 31)
        wait_for_answer(client, 31)
        # One that cannot be loaded leaves what serves, until it is mended.
        (folder / "4").mkdir()
        (folder / "4" / "model.py").write_text("raise RuntimeError('no such luck')")
        wait_until(lambda: ("speaker", "4") in index(client), "version 4 was not tried")
        wait_until(lambda: "no such luck" in index(client)["speaker", "4"][1], "version 4 does not say why")
        assert ask(client) == 31
        assert client.is_server_ready()
        speak(folder, 4, 40)
        wait_for_answer(client, 40)
        # An older one is wanted, and then the newest again.
        (folder / "config.pbtxt").write_text(f"{SPEAKER_CONFIG}\nversion_policy {{ specific {{ versions: 2 }} }}")
        wait_for_answer(client, 20)
        (folder / "config.pbtxt").write_text(SPEAKER_CONFIG)
        wait_for_answer(client, 40)
        shutil.rmtree(folder / "4")
        wait_for_answer(client, 31)
    assert asking.failures == []
    told = [number for number, before in zip(asking.answers, [0, *asking.answers], strict=False) if number != before]
    assert told == [10, 20, 30, 31, 40, 20, 40, 31]


def test_a_model_comes_changes_its_name_and_goes(repository: Path, client: Any) -> None:
    write_model(repository, "echo", echo_config())
    wait_until(lambda: client.is_model_ready("echo"), "the new model is not served")
    (repository / "echo").rename(repository / "other")
    wait_until(lambda: client.is_model_ready("other") and not client.is_model_ready("echo"), "it was not renamed")
    shutil.rmtree(repository / "other")
    wait_until(lambda: not client.is_model_ready("other"), "the deleted model is served")
    wait_until(lambda: {name for name, _ in index(client)} == {"speaker"}, "the deleted model is in the index")
    with pytest.raises(InferenceServerException, match="'other' is not found"):
        client.infer("other", infer_inputs({"INPUT0": ROWS}))
    assert client.is_server_ready()


def test_a_name_in_two_repositories_is_an_error_that_names_both(repository: Path, tmp_path_factory: Any) -> None:
    second = tmp_path_factory.mktemp("second")
    with (
        ServerProcess(repository, second, options=RESTING) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        shutil.copytree(repository / "speaker", second / "speaker")
        wait_until(lambda: "two or more" in index(client)["speaker", "1"][1], "the second one was not seen")
        reason = index(client)["speaker", "1"][1]
        assert str(repository / "speaker") in reason
        assert str(second / "speaker") in reason
        # What was there first goes on, until there is one again.
        assert ask(client) == 10
        speak(second / "speaker", 1, 11)
        shutil.rmtree(repository / "speaker")
        wait_for_answer(client, 11)


def test_what_is_asked_for_by_hand_stands_until_the_files_change(repository: Path, client: Any) -> None:
    client.unload_model("speaker")
    assert not client.is_model_ready("speaker")
    write_model(repository, "echo", echo_config())
    wait_until(lambda: client.is_model_ready("echo"), "the new model is not served")
    assert not client.is_model_ready("speaker")
    speak(repository / "speaker", 1, 11)
    wait_until(lambda: client.is_model_ready("speaker"), "the changed model is not served")
    assert ask(client) == 11


def test_a_copy_that_takes_its_time_is_loaded_once_and_whole(
    repository: Path, server: ServerProcess, client: Any
) -> None:
    text = SPEAKER.format(number=20)
    (repository / "speaker" / "2").mkdir()
    with (repository / "speaker" / "2" / "model.py").open("w") as file:
        # Longer than files need to rest, altogether, and never still for that long.
        for line in text.splitlines(keepends=True):
            file.write(line)
            file.flush()
            time.sleep(0.15)
            assert ask(client) == 10
    wait_for_answer(client, 20)
    assert server.log.count("speaker/2 begins to load") == 1


COPIER = """
import sys, time
source, target = sys.argv[1:]
with open(source, "rb") as read, open(target, "wb") as written:
    while block := read.read(64):
        written.write(block)
        written.flush()
        time.sleep(0.01)
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_copier_that_is_killed_leaves_what_serves(
    repository: Path, server: ServerProcess, client: Any, tmp_path_factory: Any, moment: float
) -> None:
    source = tmp_path_factory.mktemp("source") / "model.py"
    source.write_text(SPEAKER.format(number=20) + "# " + "x" * 1000)
    target = repository / "speaker" / "2" / "model.py"
    target.parent.mkdir()
    copier = subprocess.Popen([sys.executable, "-c", COPIER, str(source), str(target)])
    wait_until(
        lambda: target.exists() and target.stat().st_size >= moment * source.stat().st_size, "nothing was copied"
    )
    copier.send_signal(signal.SIGKILL)
    copier.wait()
    wait_until(lambda: "speaker/2 begins to load" in server.log, "what was left was not looked at")
    wait_until(lambda: ("speaker", "2") in index(client), "version 2 was not tried")
    assert ask(client) in (10, 20)
    shutil.copy(source, target)
    wait_for_answer(client, 20)


def test_files_that_arrive_as_the_server_starts_are_waited_for(repository: Path) -> None:
    speak(repository / "speaker", 2, 20)
    with ServerProcess(repository, options=("--settle-seconds", "2")) as server:
        assert "until their files have come to rest: speaker" in server.log
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            assert client.is_server_ready()
            assert ask(client) == 20


CONFIG_JSON = """{"backend": "python", "input": [{"name": "INPUT0", "data_type": "TYPE_INT64", "dims": [1]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_INT64", "dims": [1]}],
    "parameters": {"colour": {"string_value": "blue"}}}"""


def test_a_load_may_bring_its_configuration(client: Any) -> None:
    client.load_model("speaker", config=CONFIG_JSON)
    assert ask(client) == 10
    assert client.get_model_config("speaker", as_json=True)["config"]["parameters"]["colour"]["string_value"] == "blue"
    client.load_model("speaker")
    assert "parameters" not in client.get_model_config("speaker", as_json=True)["config"]


def test_a_load_may_bring_its_files_where_that_is_allowed(repository: Path, client: Any) -> None:
    files = {"file:1/model.py": SPEAKER.format(number=99).encode()}
    with pytest.raises(InferenceServerException, match="--allow-model-upload"):
        client.load_model("sent", config=CONFIG_JSON, files=files)
    options = (*RESTING, "--allow-model-upload", "true")
    with (
        ServerProcess(repository, options=options) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as allowed,
    ):
        allowed.load_model("sent", config=CONFIG_JSON, files=files)
        assert ask(allowed, "sent") == 99
        for path in (
            "../evil/1/model.py",
            "1/../../evil.py",
            "/etc/evil",
            "1/",
            "1",
            "x/model.py",
            "1/.hidden",
            "1//x",
        ):
            with pytest.raises(InferenceServerException, match="file:"):
                allowed.load_model("sent", config=CONFIG_JSON, files={f"file:{path}": b"x"})
        for name in ("../evil", "a/b", "", ".", "..", "a b"):
            with pytest.raises(InferenceServerException, match="model name"):
                allowed.load_model(name, config=CONFIG_JSON, files=files)
        assert ask(allowed, "sent") == 99
        assert not (repository.parent / "evil").exists()
        assert sorted(path.name for path in repository.iterdir()) == ["speaker"]
        allowed.unload_model("sent")
        assert server.terminate() == 0


def test_the_number_of_instances_changes_while_it_serves(repository: Path, client: Any, server: ServerProcess) -> None:
    write_model(repository, "echo", echo_config())
    wait_until(lambda: client.is_model_ready("echo"), "the new model is not served")
    (repository / "echo" / "config.pbtxt").write_text(
        echo_config(extra="dynamic_batching { } instance_group { count: 3 }")
    )
    server.wait_for_log("echo/1 has 3 instances now")
    assert (client.infer("echo", infer_inputs({"INPUT0": ROWS})).as_numpy("OUTPUT0") == ROWS).all()
    assert client.get_model_config("echo").config.instance_group[0].count == 3
    assert server.log.count("echo/1 begins to load") == 1
