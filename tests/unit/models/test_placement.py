"""Instance groups onto devices, as Triton reads them."""

from pathlib import Path

import pytest

from preheat.errors import InvalidConfig
from preheat.models.placement import Placement, place
from preheat.repository.configuration import ModelConfiguration, parse_configuration

CPU = ("cpu",)
GPUS = ("cpu", "cuda:0", "cuda:1")


def configured(groups: str) -> ModelConfiguration:
    return parse_configuration(f'backend: "eager" {groups}', Path("repository/m"))


@pytest.mark.parametrize(
    ("groups", "devices", "expected"),
    [
        ("", CPU, [("cpu", 1)]),
        ("", GPUS, [("cuda:0", 1)]),
        ("instance_group { count: 3 }", CPU, [("cpu", 3)]),
        ("instance_group { kind: KIND_CPU count: 2 }", GPUS, [("cpu", 2)]),
        ("instance_group { kind: KIND_CPU }", GPUS, [("cpu", 1)]),
        ("instance_group { kind: KIND_GPU count: 2 }", GPUS, [("cuda:0", 2), ("cuda:1", 2)]),
        ("instance_group { kind: KIND_GPU gpus: 1 }", GPUS, [("cuda:1", 1)]),
        ("instance_group { kind: KIND_GPU gpus: [ 1, 0 ] count: 2 }", GPUS, [("cuda:1", 2), ("cuda:0", 2)]),
        ("instance_group { gpus: 1 }", GPUS, [("cuda:1", 1)]),
        ("instance_group { kind: KIND_MODEL }", CPU, [("cpu", 1)]),
        ("instance_group { kind: KIND_MODEL }", GPUS, [("cuda:0", 1)]),
        ("instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU }", GPUS[:2], [("cpu", 1), ("cuda:0", 1)]),
        ("instance_group { gpus: 0 } instance_group { gpus: 0 count: 2 }", GPUS, [("cuda:0", 3)]),
    ],
)
def test_groups_are_placed(groups: str, devices: tuple[str, ...], expected: list[tuple[str, int]]) -> None:
    assert place(configured(groups), devices) == [Placement(*each) for each in expected]


@pytest.mark.parametrize(
    ("groups", "devices", "wanted"),
    [
        ("instance_group { kind: KIND_GPU }", CPU, "KIND_GPU wants cuda:0"),
        ("instance_group { gpus: 0 }", CPU, "KIND_AUTO wants cuda:0"),
        ("instance_group { kind: KIND_GPU gpus: 7 }", GPUS, "KIND_GPU wants cuda:7"),
        ("instance_group { kind: KIND_CPU }", ("cuda:0",), "KIND_CPU wants cpu"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(
    groups: str, devices: tuple[str, ...], wanted: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        place(configured(groups), devices)
    expected = f"config.pbtxt: instance_group: {wanted}; backend 'eager' found {', '.join(devices)} here"
    assert expected in str(caught.value)
