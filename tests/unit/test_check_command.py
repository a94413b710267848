"""``preheat repo check`` finds every problem, says where, and tells a CI whether there is one."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.builders import parameters_text, write_model

from preheat.cli import main
from preheat.repository.mending import config_problems
from preheat.repository.scan import BrokenModel, read_model

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
    problem, *_ = config_problems(folder)
    assert f"{folder / 'config.pbtxt'}:1:" in problem


def problems_of(tmp_path: Path, text: str, name: str = "m") -> list[str]:
    """What is said, without file and remedy, of ``text``."""
    folder = write_model(tmp_path, name, config=text)
    file = f"{folder / 'config.pbtxt'}: "
    found = (problem.removeprefix(file).removeprefix(str(folder)) for problem in config_problems(folder))
    return [problem.partition(": must")[0] for problem in found]


ONE_PLACE = {
    "an input": (
        'input { name: "z" is_shape_tensor: true dims: [ -7 ] }',
        ["input.is_shape_tensor: not supported; no backend takes shape tensors", "input 'z': dims: -7",
         "input 'z': data_type: not set; must be one of "],
    ),
    "elements of a list": (
        "dynamic_batching { preferred_batch_size: [ 9, 10 ] priority_levels: 200 default_priority_level: 300 }",
        ["dynamic_batching: preferred_batch_size: 9", "dynamic_batching: preferred_batch_size: 10",
         "dynamic_batching: priority_levels: 200", "dynamic_batching: default_priority_level: 300"],
    ),
    "what is refused": (
        "instance_group [ { passive: true count: -1 }, { passive: true } ] optimization { priority: PRIORITY_MAX }",
        ["instance_group.passive: not supported; leave the group out",
         "optimization.priority: not supported; models share the machine equally", "instance_group: count: -1"],
    ),
    "a sample": (
        'model_warmup { batch_size: 9 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 0 ] zero_data: true } } '
        'inputs { key: "y" value { data_type: TYPE_FP32 dims: [ 2 ] } } }',
        ["model_warmup[0]: batch_size: 9", "model_warmup[0]: inputs 'x': dims: [0]",
         "model_warmup[0]: inputs 'y': set one of zero_data, random_data and input_data_file"],
    ),
    "a name twice": (
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "z" data_type: TYPE_FP32 } ]',
        ["input 'x': declared twice", "input 'z': dims: not set; a tensor with one value per row has dims [ 1 ]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", ONE_PLACE)
def test_several_problems_in_one_place_are_all_told_and_no_others(tmp_path: Path, place: str) -> None:
    text, told = ONE_PLACE[place]
    found = problems_of(tmp_path, DOUBLE + text)
    # Which of a sample's inputs comes first is not said.
    assert sorted(each.partition("TYPE_BOOL")[0] for each in found) == sorted(told)


def test_what_is_wrong_is_not_mended_into_something_else(tmp_path: Path) -> None:
    text = DOUBLE.replace("max_batch_size: 8", "max_batch_size: -8")
    found = problems_of(tmp_path, f"{text} dynamic_batching {{ preferred_batch_size: 64 }}")
    assert found == ["max_batch_size: -8"]


def test_what_is_missing_or_misnamed_hides_nothing(tmp_path: Path) -> None:
    wrong = f"{DOUBLE} instance_group {{ count: -1 }}"
    missing = problems_of(tmp_path, wrong.replace('backend: "double"', ""))
    assert missing[0].startswith("backend: not set")
    assert missing[1:] == ["instance_group: count: -1"]
    misnamed = problems_of(tmp_path, wrong, "m@")
    assert misnamed[0].startswith(": a model's folder may only have letters")
    assert misnamed[1:] == ["instance_group: count: -1"]


def test_every_line_that_is_none_is_told_and_what_else_is_wrong(tmp_path: Path) -> None:
    text = DOUBLE.replace("max_batch_size: 8", "max_batch_sise: 8\nmax_batch_size: eight\ncolour: blue")
    found = problems_of(tmp_path, f"{text} instance_group {{ count: -1 }} dynamic_batching {{ }}")
    assert len(found) == 4, found
    for line, key in ((3, "max_batch_sise"), (4, "eight"), (5, "colour")):
        assert [f"config.pbtxt:{line}:" in each and key in each for each in found].count(True) == 1, found
    assert found[3] == "instance_group: count: -1"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from([*'-90"{}x', "\n", ""])), max_size=4))
def test_looking_for_problems_ends_and_raises_nothing(tmp_path: Path, changes: list[tuple[int, str]]) -> None:
    text = DOUBLE + "dynamic_batching { preferred_batch_size: [ 9 ] } instance_group { count: 2 gpus: [ 0 ] }"
    for at, put in changes:
        text = text[: at % len(text)] + put + text[at % len(text) + 1 :]
    folder = tmp_path / "m"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text)
    problems = config_problems(folder)
    assert len(problems) == len(set(problems))
    assert bool(problems) == isinstance(read_model(folder), BrokenModel)


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
    # Both of those called twice are looked at.
    assert summary == "7 models, 8 versions: 5 problems"
    clash = next(line for line in problems if "appears in two or more" in line)
    assert str(first / "twice") in clash
    assert str(second / "twice") in clash
    for told in ("appears in two or more repositories", "has no version folder", "version_policy: specific: [7]"):
        assert [told in line for line in problems].count(True) == 1, problems
    assert [str(torn / "2" / "model.onnx") in line and "damaged" in line for line in problems].count(True) == 1
    assert [not line.startswith("note: ") and "unknown backend 'warp'" in line for line in problems].count(True) == 1
    code, lines = check(capsys, "--strict", "--json", first)
    assert code == 1
    found = json.loads("\n".join(lines))
    assert {(each["model"], each["version"]) for each in found} >= {("torn", 2), ("strange", 1)}
    assert {each["file"] for each in found} >= {str(torn / "2" / "model.onnx"), str(first / "wants" / "config.pbtxt")}


def test_a_policy_is_held_against_the_versions_though_its_file_has_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{DOUBLE} instance_group {{ count: -1 }} version_policy {{ specific {{ versions: 7 }} }}"
    folder = write_model(tmp_path, config=text)
    (folder / "1" / "table.json").write_text("{")
    code, lines = check(capsys, tmp_path)
    assert (code, lines[-1]) == (1, "1 models, 1 versions: 3 problems")
    for line, told in zip(lines, ("count: -1", "version_policy: specific: [7]", "table.json is damaged"), strict=False):
        assert told in line


def test_artifacts_are_held_against_their_configuration_version_by_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path, config='backend: "python"', versions=(1, 2))
    (folder / "1" / "model.py").write_text("print('hello')\nimport nowhere_to_be_found\n")
    code, lines = check(capsys, "--json", tmp_path)
    found = json.loads("\n".join(lines))
    assert code == 1
    assert [(each["version"], each["note"]) for each in found] == [(1, False), (2, False)]
    assert "nowhere_to_be_found" in found[0]["problem"]
    assert "model.py" in found[1]["problem"]


def test_each_model_is_told_of_if_that_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path, config=DOUBLE)
    assert main(["repo", "check", "-v", str(tmp_path)]) == 0
    assert f"{tmp_path / 'm'}: 0." in capsys.readouterr().err


def test_configurations_alone_are_looked_at_if_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path, config=DOUBLE)
    (folder / "1" / "model.onnx").write_bytes(b"")
    assert check(capsys, "--no-artifacts", tmp_path)[0] == 0
    assert check(capsys, tmp_path)[0] == 1


def test_what_is_no_repository_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "good", config=DOUBLE)
    code, lines = check(capsys, tmp_path / "nothing", folder, tmp_path / "good")
    assert code == 1
    assert "give a folder that holds models" in lines[0]
    assert f"so it is one model's folder; serve its parent, {tmp_path / 'good'}" in lines[1]
    assert lines[2:] == ["1 models, 1 versions: 2 problems"]


@pytest.mark.parametrize("arguments", [(), ("--format", "x", "."), ("--strict",)])
def test_what_is_asked_wrongly_is_told_apart(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["repo", "check", *arguments])
    assert ended.value.code == 2
    assert "usage: preheat" in capsys.readouterr().err
