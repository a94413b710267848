"""``preheat repo`` against a running server: what it lists, and how it changes what is served."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.server_process import LIMIT_S, ServerProcess
from tests.e2e.speaker import MOMENTS, SPEAKER, SPEAKER_CONFIG, ask, wait_until, write_speaker

OPTIONS = ("--settle-seconds", "0.3", "--allow-model-upload", "true")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    write_speaker(repository)
    return repository


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, options=OPTIONS) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def repo(action: str, *arguments: object, server: ServerProcess | None = None) -> tuple[int, str]:
    """Run the command; its exit code, and what it printed."""
    where = () if server is None else ("--server", server.grpc_address)
    command = [sys.executable, "-m", "preheat", "repo", action, *where, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.returncode, done.stdout + done.stderr


def artifact(tmp_path: Path, number: int) -> Path:
    path = tmp_path / "speaks.py"
    path.write_text(SPEAKER.format(number=number))
    return path


def test_versions_are_listed_with_what_is_known_of_them(repository: Path, server: ServerProcess, client: Any) -> None:
    assert [ask(client) for _ in range(3)] == [10, 10, 10]
    (repository / "broken").mkdir()
    wait_until(lambda: "broken" in repo("list", "--seconds", 0, server=server)[1], "the broken model is not listed")
    code, text = repo("list", "--json", server=server)
    assert code == 0
    broken, speaker = json.loads(text)
    assert (speaker["model"], speaker["version"], speaker["state"]) == ("speaker", 1, "READY")
    assert (speaker["backend"], speaker["requests"], speaker["requests_per_second"]) == ("python", 3, 0.0)
    assert speaker["load_seconds"] >= speaker["warmup_seconds"] >= 0
    assert (broken["model"], broken["version"], broken["state"]) == ("broken", None, "FAILED")
    assert "no version folder" in broken["reason"]
    code, text = repo("list", "--seconds", 0, server=server)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == ["MODEL", "broken", "speaker"]
    assert "no version folder" in lines[1]


@pytest.mark.protocol
def test_what_is_pushed_is_served_and_rolled_back_in_one_step(
    tmp_path: Path, repository: Path, server: ServerProcess, client: Any
) -> None:
    assert repo("push", "speaker", artifact(tmp_path, 20), server=server) == (0, "speaker/2 is READY\n")
    assert ask(client) == 20
    assert sorted(path.name for path in repository.iterdir()) == ["speaker"]
    code, text = repo("rollback", "speaker", server=server)
    assert code == 0
    assert "speaker/1 serves again, which was in memory still" in text
    assert ask(client) == 10
    assert server.log.count("speaker/1 begins to load") == 1
    # The next start serves the same, and the next push is another version.
    assert sorted(path.name for path in (repository / "speaker").iterdir()) == [".rolled-back-2", "1", "config.pbtxt"]
    assert repo("push", "speaker", artifact(tmp_path, 30), server=server) == (0, "speaker/3 is READY\n")
    assert ask(client) == 30


def test_a_new_model_is_pushed_with_its_configuration(tmp_path: Path, server: ServerProcess, client: Any) -> None:
    folder = tmp_path / "version"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.py").write_text(SPEAKER.format(number=7))
    (folder / "deep" / "table.json").write_text("{}")
    config = tmp_path / "config.pbtxt"
    config.write_text(SPEAKER_CONFIG)
    assert repo("push", "other", folder, "--config", config, server=server) == (0, "other/1 is READY\n")
    assert ask(client, "other") == 7


def test_what_cannot_be_served_says_so_and_leaves_what_serves(
    tmp_path: Path, server: ServerProcess, client: Any
) -> None:
    bad = tmp_path / "model.py"
    bad.write_text("raise RuntimeError('no such luck')")
    code, text = repo("push", "speaker", bad, server=server)
    assert code == 1
    assert "speaker/2 is in the repository, but is not served" in text
    assert "no such luck" in text
    assert ask(client) == 10
    torn = tmp_path / "model.pt2"
    torn.write_bytes(b"half of it")
    code, text = repo("push", "speaker", torn, server=server)
    assert (code, "is damaged, or not all of it is there yet" in text) == (1, True)


def test_load_and_unload(server: ServerProcess, client: Any) -> None:
    assert repo("unload", "speaker", server=server) == (0, "speaker is served no more\n")
    assert not client.is_model_ready("speaker")
    assert repo("load", "speaker", server=server) == (0, "speaker is loaded\n")
    assert ask(client) == 10
    code, text = repo("load", "nobody", server=server)
    assert (code, "failed to load 'nobody'" in text) == (1, True)


def test_a_push_needs_permission_and_a_server(tmp_path: Path, repository: Path) -> None:
    with ServerProcess(repository) as server:
        code, text = repo("push", "speaker", artifact(tmp_path, 20), server=server)
        assert code == 1
        assert "--allow-model-upload" in text
    code, text = repo("list", "--server", server.grpc_address)
    assert code == 1
    assert f"no server answers at {server.grpc_address}" in text


def test_a_push_without_a_server_puts_it_where_it_is_told(tmp_path: Path, repository: Path) -> None:
    code, text = repo("push", "speaker", artifact(tmp_path, 20), "--repository", repository)
    assert (code, text) == (0, f"speaker/2 is in {repository}\n")
    assert (repository / "speaker" / "2" / "model.py").is_file()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_server_that_is_killed_while_it_receives_leaves_a_repository_that_serves(
    tmp_path: Path, repository: Path, server: ServerProcess, moment: float
) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "model.py").write_text(SPEAKER.format(number=20))
    (large / "weights").write_bytes(os.urandom(96 * 2**20))
    command = [sys.executable, "-m", "preheat", "repo", "push", "--server", server.grpc_address, "speaker", str(large)]
    pushing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def received() -> int:
        try:
            return sum(path.stat().st_size for path in repository.glob(".arriving-*/speaker/*/weights"))
        except OSError:
            return 0

    wait_until(lambda: received() >= moment * 96 * 2**20 or pushing.poll() is not None, "nothing was received")
    server.send_signal(signal.SIGKILL)
    server.wait()
    pushing.communicate(timeout=LIMIT_S)
    versions = sorted(path.name for path in (repository / "speaker").iterdir() if path.name.isdecimal())
    with (
        ServerProcess(repository, options=OPTIONS) as again,
        grpcclient.InferenceServerClient(again.grpc_address) as client,
    ):
        assert ask(client) == (20 if versions == ["1", "2"] else 10)
        assert not list(repository.glob(".arriving-*"))


def test_a_client_that_leaves_leaves_nothing(tmp_path: Path, repository: Path, server: ServerProcess) -> None:
    large = tmp_path / "weights.bin"
    large.write_bytes(os.urandom(64 * 2**20))
    command = [sys.executable, "-m", "preheat", "repo", "push", "--server", server.grpc_address, "speaker", str(large)]
    pushing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: bool(list(repository.glob(".arriving-*/speaker/*/*"))), "nothing was received")
    pushing.send_signal(signal.SIGKILL)
    pushing.wait()
    wait_until(lambda: not list(repository.glob(".arriving-*")), "what was received is still there")
    assert sorted(path.name for path in (repository / "speaker").iterdir()) == ["1", "config.pbtxt"]
    shutil.rmtree(repository / "speaker")
