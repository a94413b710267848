"""The examples, run as people run them: against a server, and against what is not there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = ("--model-control-mode", "explicit", "--load-models", "efficientnet,efficientnet_int8,minilm")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(ROOT / "model_repo", options=CHOSEN) as server:
        yield server


def run(example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def classes(output: str) -> list[str]:
    heading, *rows = output.splitlines()
    assert heading == "probability  class"
    return [row.split("%  ")[1] for row in rows]


@pytest.mark.parametrize("example", ["classify_picture.py", "rank_sentences.py"])
def test_help_is_complete(example: str) -> None:
    result = run(example, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--model MODEL" in result.stdout


@pytest.mark.parametrize("model", ["efficientnet", "efficientnet_int8"])
def test_a_cup_of_coffee_is_espresso_to_each_classifier(server: ServerProcess, model: str) -> None:
    result = run("classify_picture.py", "--url", server.grpc_address, "--model", model)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(classes(result.stdout)) == 5
    assert classes(result.stdout)[0] == "espresso"


def test_a_picture_of_ones_own_is_classified(server: ServerProcess) -> None:
    picture = ROOT / "model_repo/efficientnet/data/camera.png"
    result = run("classify_picture.py", str(picture), "--url", server.grpc_address)
    assert classes(result.stdout)[0] == "tripod"


def test_a_file_that_is_no_picture_is_named(server: ServerProcess) -> None:
    result = run("classify_picture.py", str(ROOT / "README.md"), "--url", server.grpc_address)
    assert result.returncode == 1
    assert f"{ROOT / 'README.md'} cannot be read as a picture" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_missing_is_named() -> None:
    result = run("classify_picture.py", "no/such.jpg")
    assert (result.returncode, result.stderr) == (1, "no/such.jpg: no such file.\n")


@pytest.mark.parametrize("example", ["classify_picture.py", "rank_sentences.py"])
def test_without_a_server_the_advice_is_to_start_one(example: str) -> None:
    result = run(example, "--url", "127.0.0.1:1")
    assert result.returncode == 1
    assert "No server answers at 127.0.0.1:1" in result.stderr
    assert "make serve" in result.stderr


def test_an_unknown_model_is_named_with_those_that_classify(server: ServerProcess) -> None:
    result = run("classify_picture.py", "--url", server.grpc_address, "--model", "resnet")
    assert result.returncode == 1
    assert "no model 'resnet' ready" in result.stderr
    assert "efficientnet_compiled" in result.stderr


def test_a_model_that_takes_no_pictures_is_refused_with_the_servers_reason(server: ServerProcess) -> None:
    result = run("classify_picture.py", "--url", server.grpc_address, "--model", "minilm")
    assert result.returncode == 1
    assert "The server refused the request: " in result.stderr
    assert "'image'" in result.stderr


def test_sentences_about_bread_come_first(server: ServerProcess) -> None:
    result = run("rank_sentences.py", "--url", server.grpc_address)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Store the loaf in a paper bag" in result.stdout.splitlines()[3]
