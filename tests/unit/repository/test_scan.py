"""Models and versions on disk: what is found, what is passed over, and that one odd folder stops nothing."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tests.unit.builders import ECHO_CONFIG, write_model

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.scan import BrokenModel, ModelFolder, choose_versions, read_model, scan, versions_on_disk

FOLDER = Path("repository/m")


def policy(text: str) -> pb.ModelVersionPolicy:
    return text_format.Parse(text, pb.ModelVersionPolicy())


def reason(found: ModelFolder | BrokenModel) -> str:
    assert isinstance(found, BrokenModel)
    return str(found.reason)


def test_models_are_found_by_name_in_all_repositories(tmp_path: Path) -> None:
    write_model(tmp_path / "one", "b", versions=(1, 3))
    write_model(tmp_path / "two", "a")
    found = scan([tmp_path / "one", tmp_path / "two"])
    assert list(found) == ["a", "b"]
    model = found["b"]
    assert isinstance(model, ModelFolder)
    assert (model.path, model.versions, model.configuration.name) == (tmp_path / "one" / "b", (3,), "b")


def test_files_hidden_folders_and_caches_are_no_models(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    (tmp_path / "README.md").touch()
    for name in (".git", "__pycache__"):
        (tmp_path / name).mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert list(scan([tmp_path])) == ["m"]


def test_a_model_in_two_repositories_is_broken_and_names_both(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    found = scan([first.parent, second.parent])
    assert reason(found["m"]) == (f"model 'm' appears in two or more repositories: {first} and {second}; rename one")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("nonsense", "config.pbtxt:1:1"),
        ("", "backend: not set"),
        ('backend: "eager" name: "other"', "must be the folder's name"),
        ('backend: "eager" input { name: "x" data_type: 99 dims: [ 1 ] }', "data_type"),
        ('backend: "eager" instance_group { kind: 99 }', "kind"),
        (
            'backend: "eager" model_warmup { inputs { key: "x" value { data_type: 99 dims: [ 1 ] zero_data: true } } }',
            "data_type",
        ),
        (
            'backend: "eager" model_warmup '
            '{ inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 9223372036854775807 ] zero_data: true } } }',
            "dims",
        ),
        (
            'backend: "eager" model_warmup '
            '{ inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 99999999, 99999999 ] zero_data: true } } }',
            "dims",
        ),
    ],
)
def test_one_broken_model_says_why_and_leaves_the_others_to_be_served(
    tmp_path: Path, config: str, expected: str
) -> None:
    write_model(tmp_path, "bad", config=config)
    write_model(tmp_path, "good")
    found = scan([tmp_path])
    assert expected in reason(found["bad"])
    assert isinstance(found["good"], ModelFolder)


def test_a_configuration_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "config.pbtxt").write_bytes(b"backend: \xff")
    assert str(folder) in reason(read_model(folder))


def test_a_folder_that_is_gone_is_broken(tmp_path: Path) -> None:
    assert "gone" in reason(read_model(tmp_path / "gone"))


def test_a_folder_without_versions_says_where_the_artifact_goes(tmp_path: Path) -> None:
    folder = write_model(tmp_path, versions=())
    assert reason(read_model(folder)) == f"{folder}: has no version folder; put the artifact into {folder / '1'}"


@pytest.mark.parametrize("repository", ["nowhere", "file"])
def test_a_repository_that_is_no_folder_is_an_error_of_the_whole(tmp_path: Path, repository: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match=f"model repository .*{repository}: .*; give a folder that holds models"):
        scan([tmp_path / repository])


def test_versions_are_folders_named_with_a_whole_number_from_1_in_plain_digits(tmp_path: Path) -> None:
    for name in ("2", "10", "1", "0", "01", "-1", "1.0", "v1", "warmup", "²", "٣"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").touch()
    assert versions_on_disk(tmp_path) == [1, 2, 10]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (7,)),
        ("latest {}", (7,)),
        ("latest { num_versions: 2 }", (3, 7)),
        ("latest { num_versions: 9 }", (1, 3, 7)),
        ("all {}", (1, 3, 7)),
        ("specific { versions: [ 7, 1, 7 ] }", (1, 7)),
    ],
)
def test_the_policy_chooses_among_the_versions_there_are(text: str, expected: tuple[int, ...]) -> None:
    assert choose_versions(policy(text), [1, 3, 7], FOLDER) == expected


@pytest.mark.parametrize("text", ["specific { versions: [ 1, 2 ] }", "specific {}"])
def test_a_policy_that_asks_for_what_is_not_there_says_what_is(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"version_policy: specific: \[.*\]: there are versions 1, 3, 7"):
        choose_versions(policy(text), [1, 3, 7], FOLDER)


def test_a_policy_in_the_configuration_is_followed(tmp_path: Path) -> None:
    config = f"{ECHO_CONFIG} version_policy {{ all {{}} }}"
    model = read_model(write_model(tmp_path, config=config, versions=(1, 2)))
    assert isinstance(model, ModelFolder)
    assert model.versions == (1, 2)
