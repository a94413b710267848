"""What a name makes of a file or folder."""

from itertools import islice

import pytest

from preheat.repository.names import is_ignored, is_model_name, is_plain, is_version, names_aside, version_aside


@pytest.mark.parametrize("name", ["m", "_m", "0", "ResNet-50.v1_b"])
def test_a_plain_name_is_a_models(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", ".m", "..", "a/b", "a b", "-m", "m\n", "é", "__pycache__"])
def test_any_other_is_none(name: str) -> None:
    assert not is_model_name(name)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("1", True),
        ("9" * 18, True),
        ("9" * 19, False),
        ("0", False),
        ("01", False),
        ("-1", False),
        ("1.0", False),
        ("", False),
        ("1\n", False),
        ("\u0661", False),
    ],
)
def test_a_version_is_a_whole_number_as_one_is_written(name: str, is_one: bool) -> None:
    assert is_version(name) is is_one


@pytest.mark.parametrize("name", ["", ".x", "..", "a\\b", "a\0b", "__pycache__"])
def test_what_leads_elsewhere_or_is_ignored_is_no_name_for_a_client_to_give(name: str) -> None:
    assert not is_plain(name)


def test_names_aside_are_hidden_and_say_what_they_were() -> None:
    names = list(islice(names_aside(12), 3))
    assert names == [".rolled-back-12", ".rolled-back-12-2", ".rolled-back-12-3"]
    assert all(is_ignored(name) and version_aside(name) == 12 for name in names)
    assert [version_aside(name) for name in ("12", ".rolled-back-", ".rolled-back-x", "rolled-back-1")] == [None] * 4
