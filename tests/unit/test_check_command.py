"""``preheat repo check`` finds every problem, says where, and tells a CI whether there is one."""

import json
from pathlib import Path

import pytest
from tests.unit.builders import parameters_text, write_model

from preheat.cli import main
from preheat.repository.checking import config_problems

DOUBLE = """
backend: "double"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
"""


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main(["repo", "check", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def test_a_sound_repository_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path, config=DOUBLE, versions=(1, 2))
    assert check(capsys, tmp_path) == (0, ["1 models, 2 versions: 0 problems"])


def test_every_problem_of_a_configuration_is_told(tmp_path: Path) -> None:
    wrong = {"preheat.threads": "none", "preheat.colour": "blue", "preheat.canary.samples": "0"}
    text = DOUBLE.replace("max_batch_size: 8", "max_batch_size: -8") + parameters_text(wrong)
    folder = write_model(tmp_path, config=f'name: "other" {text} instance_group {{ count: -1 }}')
    problems = config_problems(folder)
    for told in (
        "name: 'other'",
        "preheat.threads: 'none'",
        "preheat.colour: unknown parameter",
        "preheat.canary.samples: '0'",
        "max_batch_size: -8",
        "instance_group: count: -1",
    ):
        assert [told in problem for problem in problems].count(True) == 1, problems
    assert len(problems) == 6
    assert all(str(folder / "config.pbtxt") in problem for problem in problems)


@pytest.mark.parametrize("text", ["nonsense", 'backend: "double', "max_batch_size: x"])
def test_what_is_no_configuration_is_told_with_its_line(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path, config=text)
    (problem,) = config_problems(folder)
    assert f"{folder / 'config.pbtxt'}:1:" in problem


def test_models_versions_and_artifacts_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_model(first, "good", config=DOUBLE)
    write_model(first, "twice", config=DOUBLE)
    write_model(second, "twice", config=DOUBLE)
    write_model(first, "none", config=DOUBLE, versions=())
    write_model(first, "wants", config=f"{DOUBLE} version_policy {{ specific {{ versions: 7 }} }}")
    torn = write_model(first, "torn", config=DOUBLE, versions=(1, 2))
    (torn / "2" / "model.onnx").write_bytes(b"\x3a\xff\x7f")
    write_model(first, "odd", config=DOUBLE.replace('output { name: "x"', 'output { name: "y"'))
    write_model(first, "strange", config=DOUBLE.replace('"double"', '"warp"'))
    code, lines = check(capsys, first, second)
    assert code == 1
    *problems, summary = lines
    assert summary == "7 models, 7 versions: 4 problems"
    for told in ("appears in two or more repositories", "has no version folder", "version_policy: specific: [7]"):
        assert [told in line for line in problems].count(True) == 1, problems
    assert [str(torn / "2" / "model.onnx") in line and "damaged" in line for line in problems].count(True) == 1
    assert [line.startswith("note: ") and "unknown backend 'warp'" in line for line in problems].count(True) == 1
    code, lines = check(capsys, "--strict", "--json", first)
    assert code == 1
    assert {(each["model"], each["version"]) for each in json.loads("\n".join(lines))} >= {("torn", 2), ("strange", 1)}


def test_configurations_alone_are_looked_at_if_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path, config=DOUBLE)
    (folder / "1" / "model.onnx").write_bytes(b"")
    assert check(capsys, "--no-artifacts", tmp_path)[0] == 0
    assert check(capsys, tmp_path)[0] == 1


def test_what_is_no_repository_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repo", "check", str(tmp_path / "nothing")]) == 1
    assert "give a folder that holds models" in capsys.readouterr().err
