"""The parts of the contract that compute: dimensions, and what a source parses and refuses."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import echo_signature

from preheat.backend import Dimension, ModelSource
from preheat.errors import InvalidConfig
from preheat.parameters import parse_parameters


class Mode(Enum):
    FAST = "fast"
    SAFE = "safe"


@dataclass(frozen=True)
class Schema:
    text: str = ""
    whole: int = 1
    real: float = 0.5
    flag: bool = False
    mode: Mode = Mode.SAFE
    limit: int | None = None


@dataclass(frozen=True)
class Nothing:
    pass


@given(st.integers(0, 9), st.none() | st.integers(0, 9), st.integers(1, 4), st.integers(0, 12))
def test_an_axis_allows_sizes_within_its_bounds_in_its_steps(
    minimum: int, maximum: int | None, step: int, size: int
) -> None:
    allowed = size in range(minimum, 100 if maximum is None else maximum + 1) and size in range(0, 100, step)
    assert Dimension("n", minimum, maximum, step).allows(size) == allowed


@pytest.mark.parametrize(
    ("axis", "shown"),
    [
        (Dimension.fixed(4), "4"),
        (Dimension("seq", 4, 4), "4"),
        (Dimension("seq", 1, 512), "seq(1..512)"),
        (Dimension("seq", 32, 512, 32), "seq(32..512 in steps of 32)"),
        (Dimension(), "any(0..)"),
    ],
)
def test_an_axis_shows_what_it_allows(axis: Dimension, shown: str) -> None:
    assert str(axis) == shown


def test_only_a_fixed_axis_has_a_size() -> None:
    assert [Dimension.fixed(0).size, Dimension("seq", 1, 2).size, Dimension().size] == [0, None, None]


def test_a_signature_batches_from_a_largest_batch_of_1() -> None:
    assert [echo_signature(max_batch_size=size).batches for size in (0, 1, 8)] == [False, True, True]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("text", "anything", "anything"),
        ("whole", "-3", -3),
        ("real", "1e-3", 0.001),
        ("flag", "true", True),
        ("flag", "TRUE", True),
        ("flag", "1", True),
        ("flag", "false", False),
        ("flag", "0", False),
        ("mode", "fast", Mode.FAST),
        ("limit", "7", 7),
    ],
)
def test_a_parameter_becomes_what_its_field_holds(key: str, text: str, expected: object) -> None:
    parsed = parse_parameters(Schema, {key: text}, where="here")
    assert getattr(parsed, key) == expected
    assert type(getattr(parsed, key)) is type(expected)


def test_what_is_not_given_keeps_its_default() -> None:
    assert parse_parameters(Schema, {}, where="here") == Schema()


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("whole", "1.5", "config: whole: '1.5': must be an integer"),
        ("real", "much", "config: real: 'much': must be a number"),
        ("flag", "yes", "config: flag: 'yes': must be true or false"),
        ("mode", "slow", "config: mode: 'slow': must be one of fast, safe"),
        ("limit", "none", "config: limit: 'none': must be an integer"),
        ("Whole", "1", "config: Whole: unknown parameter; allowed: text, whole, real, flag, mode, limit"),
    ],
)
def test_a_bad_parameter_is_refused_by_place_key_value_and_what_is_allowed(key: str, text: str, expected: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_parameters(Schema, {key: text}, where="config")
    assert str(caught.value) == expected


def test_a_backend_without_parameters_says_so() -> None:
    with pytest.raises(InvalidConfig, match="config: any: unknown parameter; allowed: this backend takes none"):
        parse_parameters(Nothing, {"any": "1"}, where="config")


def test_a_source_names_its_file_in_what_it_refuses() -> None:
    source = ModelSource("m", 1, Path("r/m/1"), Path("r/m/config.pbtxt"), parameters={"whole": "x"})
    with pytest.raises(InvalidConfig, match=r"^r/m/config\.pbtxt: parameters: whole: 'x': must be an integer$"):
        source.parse_parameters(Schema)
    assert str(source.refuse("whole", -1, "must be at least 1")) == (
        "r/m/config.pbtxt: parameters: whole: -1: must be at least 1"
    )
