"""The documentation is held against the code: a table that drifts is worse than none."""

import re
from pathlib import Path

import pytest

from preheat.plugins import backend_names
from preheat.repository import fields
from preheat.settings import flag_of, option_fields, variable_of

DOCS = Path(__file__).parents[2] / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
ROWS = dict(re.findall(r"^\| `([a-z_.]+)` \| (honoured|refused|inert) \|", CONFIGURATION, re.MULTILINE))


def test_the_configuration_page_gives_every_field_its_verdict() -> None:
    expected = {path: fields.verdict(path).value for path in (*fields.HONOURED, *fields.REFUSED, *fields.INERT)}
    assert expected == ROWS


@pytest.mark.parametrize("name", [each.name for each in option_fields()])
def test_the_configuration_page_has_every_setting(name: str) -> None:
    assert f"| `{flag_of(name)}` | `{variable_of(name)}` |" in CONFIGURATION


@pytest.mark.parametrize("key", ["buckets", "threads", "shape.TENSOR", "dimension.NAME", "accept_row_dependence"])
def test_the_configuration_page_has_every_parameter_of_the_server(key: str) -> None:
    assert f"| `preheat.{key}` |" in CONFIGURATION


@pytest.mark.parametrize("backend", backend_names())
def test_the_support_matrix_and_the_configuration_page_have_every_backend(backend: str) -> None:
    assert f"| `{backend}` |" in (DOCS / "support-matrix.md").read_text()
    assert f"| `{backend}` |" in CONFIGURATION
