"""Existing clients work because our protocol is theirs: nothing in it may differ from what tritonclient ships."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

Definition: TypeAlias = dict[str, object]

DUMP = Path(__file__).with_name("dump_descriptors.py")


def dump(*modules: str) -> Definition:
    """Return what the modules define, as a process of its own sees it."""
    result = subprocess.run([sys.executable, str(DUMP), *modules], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    definition: Definition = json.loads(result.stdout)
    return definition


def differences(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """Yield a line for each difference; what one side lacks altogether gets one line, not one for each of its parts."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)
    elif ours != theirs:
        yield f"{path}: {shown(ours)} here, {shown(theirs)} in tritonclient"


def shown(value: object) -> str:
    if value is None:
        return "absent"
    return "present" if isinstance(value, dict) else repr(value)


@pytest.fixture(scope="module")
def ours() -> Definition:
    return dump("preheat.protocol.grpc_service_pb2", "preheat.protocol.model_config_pb2")


@pytest.fixture(scope="module")
def theirs() -> Definition:
    return dump("tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2")


def test_every_definition_is_the_one_tritonclient_ships(ours: Definition, theirs: Definition) -> None:
    found = "\n".join(differences(ours, theirs))
    assert not found, f"\n{found}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("grpc_service/messages/ModelInferRequest/fields/raw_input_contents/number", 7),
        ("grpc_service/messages/ModelInferRequest/messages/InferInputTensor/fields/parameters/is_map", True),
        ("grpc_service/messages/InferParameter/fields/uint64_param/oneof", "parameter_choice"),
        ("grpc_service/messages/ModelInferResponse/fields/raw_output_contents/label", "LABEL_REPEATED"),
        ("grpc_service/services/GRPCInferenceService/methods/ModelStreamInfer/client_streaming", True),
        ("model_config/enums/DataType/values/TYPE_BF16/number", 14),
        ("model_config/messages/ModelConfig/fields/max_batch_size/json_name", "maxBatchSize"),
    ],
)
def test_the_comparison_reaches_every_kind_of_definition(ours: Definition, path: str, value: object) -> None:
    found: object = ours
    for name in path.split("/"):
        assert isinstance(found, dict)
        found = found[name]
    assert found == value


def test_a_difference_is_reported_by_its_path_with_both_values() -> None:
    ours = {"Request": {"same": {"number": 1}, "moved": {"number": 3}, "invented": {"number": 4}}}
    theirs = {"Request": {"same": {"number": 1}, "moved": {"number": 2}}, "Response": {}}
    assert list(differences(ours, theirs)) == [
        "Request.invented: present here, absent in tritonclient",
        "Request.moved.number: 3 here, 2 in tritonclient",
        "Response: absent here, present in tritonclient",
    ]
