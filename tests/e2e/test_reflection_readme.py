"""What the README does with grpcurl, done by a client that knows of the protocol what reflection tells, and no more.

It runs in a process of its own, which never imports the server's generated code.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.protocol

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("reflection_client.py")
CHOSEN = ("--model-control-mode", "explicit", "--load-models", "simple")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(ROOT / "model_repo", options=CHOSEN) as server:
        yield server


@pytest.fixture(scope="module")
def readme() -> str:
    """The section, with its commands."""
    return (
        (ROOT / "README.md").read_text(encoding="utf-8").split("## Ask with nothing but grpcurl")[1].split("\n## ")[0]
    )


def ask(server: ServerProcess, *arguments: str, body: str = "") -> str:
    command = [sys.executable, str(CLIENT), server.grpc_address, *arguments]
    result = subprocess.run(command, input=body, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_the_services_are_listed(server: ServerProcess, readme: str) -> None:
    assert "grpcurl -plaintext 127.0.0.1:8001 list\n" in readme
    services = ask(server, "list").splitlines()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} < set(services)


def test_the_message_that_the_readme_names_is_described(server: ServerProcess, readme: str) -> None:
    (name,) = re.findall(r"8001 describe (\S+)", readme)
    assert {"model_name", "id", "inputs", "raw_input_contents"} < set(ask(server, "describe", name).splitlines())


def test_the_readmes_request_gets_the_readmes_answer(server: ServerProcess, readme: str) -> None:
    ((method, body),) = re.findall(r"-d @ 127.0.0.1:8001 (\S+) <<'JSON'\n(.*?)\nJSON\n", readme, re.DOTALL)
    (answer,) = re.findall(r"```json\n(.*?)\n```", readme, re.DOTALL)
    expected: Any = json.loads(answer)
    assert json.loads(ask(server, "call", method, body=body)) == expected
