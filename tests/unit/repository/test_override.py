"""A model as a client asks for it lies in a folder of its own, and is gone with whoever holds it."""

import gc
import json
from pathlib import Path

import pytest
from tests.unit.builders import write_model

from preheat.errors import InvalidRequest
from preheat.repository.override import Override

CONFIG = json.dumps(
    {
        "backend": "planned",
        "max_batch_size": "4",
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
    }
)


def test_a_configuration_alone_is_served_with_the_models_own_files(tmp_path: Path) -> None:
    folder = write_model(tmp_path, versions=(1, 2))
    (folder / "2" / "model").write_text("weights")
    override = Override("m", CONFIG, files={}, original=folder)
    assert override.folder.configuration.max_batch_size == 4
    assert override.folder.versions == (2,)
    assert (override.folder.path / "2" / "model").read_text() == "weights"
    place = override.folder.path.parent
    del override
    gc.collect()
    assert not place.exists()
    assert (folder / "2" / "model").exists()


def test_files_take_the_place_of_all_there_are(tmp_path: Path) -> None:
    folder = write_model(tmp_path, versions=(1, 2))
    override = Override("m", CONFIG, files={"7/model": b"sent", "7/deep/table": b""}, original=folder)
    assert override.folder.versions == (7,)
    assert (override.folder.path / "7" / "model").read_bytes() == b"sent"


@pytest.mark.parametrize(
    "config", ["", "{", "[]", '{"colour": 1}', "backend: 'x'", '{"max_batch_size": -1}', "{" * 9999]
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, config: str) -> None:
    with pytest.raises(InvalidRequest, match="load parameter 'config'"):
        Override("m", config, files={}, original=write_model(tmp_path))


@pytest.mark.parametrize(
    "path", ["model", "1", "1/", "/1/model", "1/../../x", "01/model", "x/model", "1/.x", "1/a\\b", ""]
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="must be file:VERSION/NAME"):
        Override("m", CONFIG, files={path: b""}, original=None)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".x", "a b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="model name"):
        Override(name, CONFIG, files={"1/model": b""}, original=None)
