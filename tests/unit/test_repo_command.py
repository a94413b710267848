"""``preheat repo`` against our own service in this process: what it prints, what it sends, and what it complains of."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from tests.unit.builders import ECHO_CONFIG, PATIENCE_S, write_model
from tests.unit.transport.served_repository import Repository, Served, talk

from preheat.cli import main
from preheat.errors import Unsupported

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    folder = tmp_path / "repository"
    write_model(folder)
    return Repository(folder)


@pytest.fixture
def run(repository: Repository, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command beside a server; its exit code, and what it printed on both outputs."""

    def run(action: str, *arguments: object) -> tuple[int, str, str]:
        codes: list[int] = []

        async def scenario(served: Served) -> None:
            line = ["repo", action, "--server", served.address, *map(str, arguments)]
            codes.append(await asyncio.to_thread(main, line))

        talk(repository, scenario)
        captured = capsys.readouterr()
        return codes[0], captured.out, captured.err

    return run


def test_the_list_has_a_line_for_every_version(run: Run) -> None:
    code, text, complaint = run("list", "--seconds", 0)
    header, known, untried = text.splitlines()
    assert (code, complaint, header.split()[0]) == (0, "", "MODEL")
    assert " ".join(known.split()) == "m 3 READY double batch 1,2 0.50 1 7 1 - a canary agreed"
    assert " ".join(untried.split()) == "other - not loaded - - - - 0 0 -"


def test_the_list_as_json_has_numbers_and_a_rate(run: Run) -> None:
    code, text, _ = run("list", "--json", "--seconds", 0.05)
    known, untried = json.loads(text)
    assert code == 0
    assert (known["version"], known["warmup_seconds"], known["memory_bytes"]) == (3, 0.5, 2**20)
    assert (known["requests"], known["failures"], known["requests_per_second"]) == (7, 1, 0.0)
    assert (untried["version"], untried["state"], untried["memory_bytes"]) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "becomes"),
    [("net.onnx", "model.onnx"), ("net.py", "model.py"), ("net.pt2", "model.pt2"), ("net.table", "net.table")],
)
def test_a_file_is_pushed_under_the_name_that_its_backend_looks_for(
    run: Run, repository: Repository, tmp_path: Path, name: str, becomes: str
) -> None:
    # Not what any of these is, so that it gets as far as being looked at, or is placed.
    artifact = tmp_path / name
    artifact.write_bytes(b"x" * 3_000_000)
    code, text, complaint = run("push", "m", artifact)
    placed = repository.folder / "m" / "2" / becomes
    assert (code, text) == (0, "m/2 is READY\n") if placed.exists() else (1, "")
    assert placed.exists() or f"{becomes} is damaged" in complaint
    assert repository.names() == ["m"]


def test_a_graph_takes_its_weights_along(run: Run, repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "net.bin").write_bytes(b"weights")
    assert run("push", "m", tmp_path / "net.xml", "--version", 5) == (0, "m/5 is READY\n", "")
    assert sorted(path.name for path in (repository.folder / "m" / "5").iterdir()) == ["model.bin", "model.xml"]


def test_a_folder_is_pushed_with_a_configuration(run: Run, repository: Repository, tmp_path: Path) -> None:
    folder, config = tmp_path / "version", tmp_path / "new.pbtxt"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 2_500_000)
    (folder / "deep" / "empty").touch()
    (folder / ".hidden").touch()
    config.write_text(ECHO_CONFIG)
    assert run("push", "new", folder, "--config", config) == (0, "new/1 is READY\n", "")
    placed = repository.folder / "new" / "1"
    assert sorted(str(path.relative_to(placed)) for path in placed.rglob("*")) == ["deep", "deep/empty", "weights"]
    assert (placed / "weights").read_bytes() == b"w" * 2_500_000
    assert (repository.folder / "new" / "config.pbtxt").read_text() == ECHO_CONFIG


def test_what_the_server_refuses_is_told(run: Run, repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b"x")
    assert run("push", "m", tmp_path / "net", "--version", 1)[2] == (
        "preheat: m/1 is there already; push another version, or none to take the next\n"
    )
    repository.refuses = Unsupported("start the server with --allow-model-upload true")
    assert run("push", "m", tmp_path / "net") == (1, "", "preheat: start the server with --allow-model-upload true\n")
    assert run("rollback", "m") == (1, "", "preheat: start the server with --allow-model-upload true\n")


def test_a_rollback_says_what_was_done(run: Run) -> None:
    assert run("rollback", "m") == (0, "m/1 serves again\n", "")


def test_an_artifact_that_cannot_be_read_is_told(run: Run, tmp_path: Path) -> None:
    assert run("push", "m", tmp_path / "none")[::2] == (1, f"preheat: {tmp_path}/none: no such file or folder\n")
    folder = tmp_path / "version"
    folder.mkdir()
    assert run("push", "m", folder)[::2] == (1, f"preheat: {folder}: has no files\n")
    (folder / "link").symlink_to(tmp_path)
    code, _, complaint = run("push", "m", folder)
    assert (code, f"{folder}/link: is a link to a folder" in complaint) == (1, True)


def test_an_artifact_that_goes_while_it_is_sent_is_told(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tmp_path / "net"
    artifact.write_bytes(b"x")
    repository.may["begin"].clear()

    async def scenario(served: Served) -> None:
        (tmp_path / "version").mkdir()
        first, second = tmp_path / "version" / "a", tmp_path / "version" / "b"
        # More than a connection takes before anybody reads.
        first.write_bytes(bytes(2**25))
        second.write_bytes(b"x")
        line = ["repo", "push", "--server", served.address, "m", str(second.parent)]
        pushing = asyncio.ensure_future(asyncio.to_thread(main, line))
        await asyncio.to_thread(repository.begun["begin"].wait, PATIENCE_S)
        second.unlink()
        repository.may["begin"].set()
        assert await pushing == 1

    talk(repository, scenario)
    assert "No such file or directory" in capsys.readouterr().err
    assert repository.names() == ["m"]


def test_a_server_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        assert main(["repo", "list", "--server", address]) == 1
    assert capsys.readouterr().err.startswith(f"preheat: no server answers at {address}: ")


def test_another_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        server = grpc.aio.server()
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        assert await asyncio.to_thread(main, ["repo", "list", "--server", address]) == 1
        await server.stop(None)

    asyncio.run(scenario())
    assert "has no preheat.v1.ModelRepository; is it Preheat, and recent enough?" in capsys.readouterr().err


def test_a_push_without_a_server_is_placed(
    capsys: pytest.CaptureFixture[str], repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "net").write_bytes(b"x")
    assert main(["repo", "push", "m", str(tmp_path / "net"), "--repository", str(repository.folder)]) == 0
    assert capsys.readouterr().out == f"m/2 is in {repository.folder}\n"
    assert main(["repo", "push", "new", str(tmp_path / "net"), "--repository", str(repository.folder)]) == 1
    assert "'new' is new" in capsys.readouterr().err
    assert repository.names() == ["m"]


@pytest.mark.parametrize(
    "flag", ["--server=localhost:1", "--timeout=1", "--tls-ca=ca.pem", "--tls-certificate=me.pem", "--tls-key=key.pem"]
)
def test_what_is_said_of_a_server_is_refused_where_none_is_asked(
    flag: str, capsys: pytest.CaptureFixture[str], repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "net").write_bytes(b"x")
    line = ["repo", "push", "m", str(tmp_path / "net"), "--repository", str(repository.folder), flag]
    assert main(line) == 2
    assert f"{flag.partition('=')[0]}: no server is asked with --repository" in capsys.readouterr().err
    assert not (repository.folder / "m" / "2").exists()


@pytest.mark.parametrize("arguments", [["--seconds", "-1"], ["--timeout", "soon"], ["--sever", "x"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["repo", "list", *arguments])
    assert caught.value.code == 2
    assert "usage: preheat" in capsys.readouterr().err
