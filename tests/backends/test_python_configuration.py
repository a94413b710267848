"""A configuration that a model's own code completes: ``auto_complete_config``."""

from pathlib import Path
from typing import Any

import pytest
from tests.backends.cases import make_source
from tests.backends.triton_models import telling, write

from preheat.backend import Dimension, PartialConfig, TensorSpec
from preheat.errors import InvalidArtifact
from preheat.tensors import DataType
from preheat_backends.python import PythonBackend

BATCH = Dimension(minimum=1, maximum=8)
FOUR = Dimension.fixed(4)
INPUT = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
OUTPUT = {"name": "y", "data_type": "TYPE_INT32", "dims": [-1]}
DECLARED = {"max_batch_size": 8, "input": [{**INPUT, "optional": False}]}
COMPLETING = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        {body}
        return config

    def execute(self, requests):
        return []
"""


def complete(folder: Path, *statements: str, config: dict[str, Any] | None = None) -> PartialConfig:
    """What the backend says of a model whose auto_complete_config executes ``statements``."""
    source = COMPLETING.format(body="\n        ".join(statements or ("pass",)))
    declared = {"name": "", "max_batch_size": 0, "input": [], "output": [], **(config or {})}
    return PythonBackend().complete(make_source(write(folder, source), config=declared))


def test_a_model_declares_its_tensors_and_batching(tmp_path: Path) -> None:
    partial = complete(
        tmp_path,
        f"config.add_input({INPUT})",
        "config.add_input({'name': 'z', 'data_type': 'TYPE_STRING', 'dims': (-1, 2), 'optional': True})",
        f"config.add_output({OUTPUT})",
        "config.set_max_batch_size(8)",
        "config.set_dynamic_batching()",
        "config.set_model_transaction_policy({'decoupled': False})",
    )
    variable = Dimension(minimum=1)
    assert partial == PartialConfig(
        inputs=(
            TensorSpec("x", DataType.FP32, (BATCH, FOUR)),
            TensorSpec("z", DataType.BYTES, (BATCH, variable, Dimension.fixed(2)), optional=True),
        ),
        outputs=(TensorSpec("y", DataType.INT32, (BATCH, Dimension())),),
        max_batch_size=8,
        dynamic_batching=True,
        whole_requests=True,
    )


def test_a_model_without_a_batch_axis_declares_whole_shapes(tmp_path: Path) -> None:
    partial = complete(tmp_path, f"config.add_input({INPUT})", "config.set_max_batch_size(0)")
    assert partial == PartialConfig(
        inputs=(TensorSpec("x", DataType.FP32, (FOUR,)),), max_batch_size=0, whole_requests=True
    )


def test_a_model_that_completes_nothing_leaves_all_to_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, telling("return ''"))
    assert PythonBackend().complete(make_source(folder)) == PartialConfig(whole_requests=True)


def test_tensors_of_the_file_stay_the_file_s(tmp_path: Path) -> None:
    config = {"max_batch_size": 8, "input": [{**INPUT, "optional": False}], "output": [OUTPUT], "dynamic_batching": {}}
    partial = complete(
        tmp_path,
        f"config.add_input({INPUT})",
        f"config.add_output({OUTPUT})",
        "config.set_dynamic_batching()",
        config=config,
    )
    assert partial == PartialConfig(max_batch_size=8, whole_requests=True)


def test_a_model_sees_the_configuration_and_what_it_added(tmp_path: Path) -> None:
    complete(
        tmp_path,
        "assert config.as_dict()['name'] == 'm'",
        "assert config.as_dict()['parameters'] == {'k': {'string_value': 'v'}}",
        "assert config.as_dict()['input'] == []",
        f"config.add_input({INPUT})",
        "assert [each['name'] for each in config.as_dict()['input']] == ['x']",
        config={"parameters": {"k": {"string_value": "v"}}},
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("set_max_batch_size(4)", "max_batch_size: 4: the configuration says 8"),
        ("set_max_batch_size(-1)", "max_batch_size: -1: must be 0"),
        ("set_max_batch_size(None)", "max_batch_size: None: must be 0"),
        ("set_model_transaction_policy({'decoupled': True})", "not supported by this server: decoupled models"),
        ("set_model_transaction_policy({'x': 1})", "model_transaction_policy: 'x': must be 'decoupled'"),
        (
            "as_dict()['runtime'] = 'x'",
            "runtime: cannot be set by a model, which may set max_batch_size, input, output",
        ),
        ("as_dict()['dynamic_batching'] = {'x': 1}", "dynamic_batching: its fields cannot be set by a model"),
        ("as_dict()['input'][0]['dims'] = [5]", "input: a model cannot change what the configuration declares"),
        ("as_dict()['output'].append({'name': 'y'})", "output 'y': data_type: None: must be one of TYPE_BOOL, "),
        ("as_dict(); 1 / 0", r"raised ZeroDivisionError: division by zero \(model\.py, line 7\)"),
        ("as_dict(); return None", r"returned NoneType; it must return the pb_utils\.ModelConfig that it was given"),
    ],
)
def test_what_a_model_cannot_decide_is_refused(tmp_path: Path, call: str, expected: str) -> None:
    with pytest.raises(InvalidArtifact, match=rf"/1/model\.py: auto_complete_config\(\).* {expected}"):
        complete(tmp_path, f"config.{call}", config=DECLARED)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dims": [5]}, r"'x': dims: \[5\]: the configuration says \[4\]"),
        ({"data_type": "TYPE_FP64"}, "'x': data_type: TYPE_FP64: the configuration says TYPE_FP32"),
        ({"optional": True}, "'x': optional: True: the configuration says False"),
        ({"name": "z"}, "'z': not in the configuration, which must declare every input or none"),
        ({"colour": "red"}, "'x': 'colour': must be one of name, data_type, dims, optional"),
        ({"name": ""}, "name: '': must be a text that is not empty"),
        ({"data_type": "FP32"}, "'x': data_type: 'FP32': must be one of TYPE_BOOL, "),
        ({"dims": []}, r"'x': dims: \[\]: must be sizes of at least 1"),
        ({"dims": [0]}, r"'x': dims: \[0\]: must be sizes of at least 1"),
        ({"dims": 4}, "'x': dims: 4: must be sizes of at least 1"),
        ({"dims": [True]}, r"'x': dims: \[True\]: must be sizes of at least 1"),
    ],
)
def test_an_input_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidArtifact, match=rf"auto_complete_config\(\).* input:? {expected}"):
        complete(tmp_path, f"config.add_input({INPUT | changes})", config=DECLARED)


@pytest.mark.parametrize("key", ["name", "data_type", "dims"])
def test_an_output_must_be_whole(tmp_path: Path, key: str) -> None:
    output = {name: value for name, value in OUTPUT.items() if name != key}
    with pytest.raises(InvalidArtifact, match=rf"output( 'y')?: {key}: None: must be "):
        complete(tmp_path, f"config.add_output({output})")


def test_an_output_cannot_be_optional(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match="output 'y': 'optional': must be one of name, data_type, dims"):
        complete(tmp_path, f"config.add_output({OUTPUT | {'optional': True}})")


def test_dynamic_batching_needs_a_batch(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match="dynamic_batching: needs max_batch_size of at least 1"):
        complete(tmp_path, "config.set_dynamic_batching()")
