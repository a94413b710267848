"""The command: its help, its exit codes, and that what it prints of a model can be read back."""

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tests.unit.builders import write_model

from preheat import __version__
from preheat.cli import main
from preheat.plugins import backend_names
from preheat.protocol import model_config_pb2 as pb
from preheat.settings import default_of, flag_of, option_fields, variable_of

DOUBLE = """
backend: "double"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2, -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2, -1 ] }
parameters { key: "preheat.shape.x" value { string_value: "_,seq" } }
parameters { key: "preheat.shape.y" value { string_value: "_,seq" } }
parameters { key: "preheat.dimension.seq" value { string_value: "1..9" } }
"""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREHEAT_")]:
        monkeypatch.delenv(name)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """What the command says on standard error; that it says nothing else is checked as well."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_serves_help_has_every_flag_with_its_variable_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for each in option_fields():
        assert flag_of(each.name) in text
        assert f"(default {default_of(each) or 'none'}; {variable_of(each.name)})" in text


@pytest.mark.parametrize("command", ["serve", "config", "backends"])
def test_the_help_lists_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert f"  {command} " in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"preheat {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["sreve"], ["serve"], ["serve", "models", "--grpc-prot", "1"], ["config"], ["backends", "x"]]
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: preheat" in capsys.readouterr().err


def test_a_bad_flag_exits_with_2_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = complaint(capsys, 2, "serve", "models", "--grpc-port", "http")
    assert text.startswith("preheat: --grpc-port: 'http': must be a port")


def test_a_bad_variable_exits_with_2_and_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREHEAT_LOG_LEVEL", "loud")
    text = complaint(capsys, 2, "serve", "models")
    assert text.startswith("preheat: PREHEAT_LOG_LEVEL: 'loud': must be one of")


def test_a_configuration_is_printed_with_its_origins_and_reads_back_as_itself(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = printed(capsys, "config", str(write_model(tmp_path, config=DOUBLE)))
    proto = text_format.Parse(text, pb.ModelConfig())
    expected = text_format.Parse(DOUBLE, pb.ModelConfig())
    assert (proto.name, list(proto.input), list(proto.output)) == ("m", list(expected.input), list(expected.output))
    assert (proto.parameters, proto.max_batch_size) == (expected.parameters, 8)
    assert proto.instance_group[0].count == 1
    assert proto.version_policy.latest.num_versions == 1
    assert '# default\nname: "m"\n' in text
    assert "# config.pbtxt\nmax_batch_size: 8\n" in text
    assert "# variable dimensions: seq(1..9)\n" in text


def test_a_configuration_that_was_printed_prints_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    once = printed(capsys, "config", str(write_model(tmp_path / "one", config=DOUBLE)))
    again = printed(capsys, "config", str(write_model(tmp_path / "two", config=once)))
    assert text_format.Parse(again, pb.ModelConfig()) == text_format.Parse(once, pb.ModelConfig())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("max_batch_size: -1 backend: 'double'", "config.pbtxt: max_batch_size: -1: must be"),
        ("nonsense", 'config.pbtxt:1:1 : Message type "inference.ModelConfig" has no field named "nonsense"'),
        ("backend: 'nope'", "unknown backend 'nope'; there are "),
        ("backend: 'double'", "input: not set, and the artifact does not say"),
        (DOUBLE + 'parameters { key: "evry" value { string_value: "2" } }', "parameters: evry: unknown parameter"),
    ],
)
def test_a_configuration_that_cannot_be_exits_with_1_and_says_why(
    config: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = complaint(capsys, 1, "config", str(write_model(tmp_path, config=config)))
    assert text.startswith("preheat: ")
    assert expected in text


def test_a_model_that_is_not_there_exits_with_1_and_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    text = complaint(capsys, 1, "config", "no/such")
    assert text == "preheat: no/such: no such folder; give a model's folder, such as model_repo/minilm\n"


def test_every_backend_is_listed_with_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = printed(capsys, "backends").splitlines()
    assert header.split() == ["BACKEND", "EXTRA", "LIBRARY", "DEVICES"]
    assert [row.split()[0] for row in rows] == backend_names()
    assert any(row.startswith("double") and "numpy" in row and row.endswith("cpu") for row in rows)
