"""What config.pbtxt says becomes what we mean, and what cannot be is refused by file, key and value."""

from pathlib import Path

import pytest
from tests.unit.builders import write_model

from preheat.backend import Dimension, TensorSpec
from preheat.errors import InvalidConfig
from preheat.repository.batching_policy import BatchingPolicy
from preheat.repository.configuration import (
    InstanceGroup,
    ModelConfiguration,
    parse_configuration,
    read_configuration,
)
from preheat.repository.declarations import datatype_of, datatype_value
from preheat.scheduling.queue_policy import QueuePolicies, QueuePolicy
from preheat.tensors import DataType

FOLDER = Path("repository/bert")
WHOLE = """
name: "bert"
backend: "eager"
default_model_filename: "weights.pt2"
max_batch_size: 16
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] optional: true }
output { name: "pooled" data_type: TYPE_BF16 dims: [ 384 ] }
output { name: "spans" data_type: TYPE_FP32 dims: [ -1, 2 ] }
dynamic_batching {
  preferred_batch_size: [ 8, 4, 8 ]
  max_queue_delay_microseconds: 1500
  default_queue_policy { max_queue_size: 32 }
}
instance_group { kind: KIND_GPU count: 2 gpus: [ 0, 1 ] }
instance_group { kind: KIND_CPU }
parameters { key: "preheat.shape.ids" value { string_value: "seq" } }
parameters { key: "preheat.dimension.seq" value { string_value: "1..512" } }
parameters { key: "mode" value { string_value: "fast" } }
"""


def parse(text: str) -> ModelConfiguration:
    return parse_configuration(text, FOLDER)


def refusal(text: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse(text)
    return str(caught.value)


def test_everything_a_configuration_says_is_understood() -> None:
    configuration = parse(WHOLE)
    assert (configuration.name, configuration.backend, configuration.max_batch_size) == ("bert", "eager", 16)
    assert (configuration.file, configuration.artifact_name) == (FOLDER / "config.pbtxt", "weights.pt2")
    assert configuration.inputs == (
        TensorSpec("ids", DataType.INT64, (Dimension("seq", 1, 512),)),
        TensorSpec("text", DataType.BYTES, (Dimension.fixed(1),), optional=True),
    )
    assert configuration.outputs == (
        TensorSpec("pooled", DataType.BF16, (Dimension.fixed(384),)),
        # An output of no rows is an answer; an input of none is most often a mistake.
        TensorSpec("spans", DataType.FP32, (Dimension(minimum=0), Dimension.fixed(2))),
    )
    assert configuration.batching == BatchingPolicy((4, 8), 0.0015, QueuePolicies((QueuePolicy(32),)))
    assert configuration.instance_groups == (InstanceGroup("KIND_GPU", 2, (0, 1)), InstanceGroup("KIND_CPU", 1))
    assert configuration.backend_parameters == {"mode": "fast"}


def test_what_a_configuration_leaves_open_stays_open_and_nothing_is_batched() -> None:
    configuration = parse('backend: "eager"')
    assert (configuration.inputs, configuration.outputs, configuration.samples) == ((), (), ())
    assert (configuration.max_batch_size, configuration.batching, configuration.artifact_name) == (0, None, None)
    assert configuration.instance_groups == (InstanceGroup("KIND_AUTO", 1),)


def test_a_variable_input_has_at_least_one_element() -> None:
    configuration = parse('backend: "eager" input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }')
    assert configuration.inputs[0].shape == (Dimension(minimum=1),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('backend: "onnxruntime"', "onnxruntime"),
        ('platform: "onnxruntime_onnx"', "onnxruntime"),
        ('backend: "eager" platform: "onnxruntime_onnx"', "eager"),
        ('backend: "pytorch"', "torchscript"),
        ('platform: "pytorch_libtorch"', "torchscript"),
        ('backend: "anything_else"', "anything_else"),
    ],
)
def test_tritons_names_for_a_backend_are_ours(text: str, expected: str) -> None:
    assert parse(text).backend == expected


@pytest.mark.parametrize(
    ("artifact", "config", "expected"),
    [
        ("model.onnx", None, "onnxruntime"),
        ("model.pt2", None, "eager"),
        ("model.pt", None, "torchscript"),
        ("model.xml", None, "openvino"),
        ("model.onnx", "max_batch_size: 4", "onnxruntime"),
        ("model.pt2", 'default_model_filename: "model.pt2"', "eager"),
    ],
)
def test_a_bare_artifact_says_which_backend_it_is_for(
    tmp_path: Path, artifact: str, config: str | None, expected: str
) -> None:
    folder = write_model(tmp_path, config=config, versions=(1, 2))
    (folder / "2" / artifact).touch()
    assert read_configuration(folder).backend == expected


def test_an_artifact_outside_a_version_folder_says_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path, config=None)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "model.onnx").touch()
    with pytest.raises(
        InvalidConfig, match=r"backend: not set, and no version folder has one of model\.onnx, model\.pt2"
    ):
        read_configuration(folder)


def test_each_level_has_its_own_queue_policy_or_the_default_one() -> None:
    policies = """
        dynamic_batching {
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { max_queue_size: 9 default_timeout_microseconds: 2500 allow_timeout_override: true }
          priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 1000000 } }
        }
    """
    batching = parse_configuration(f'backend: "eager" max_batch_size: 4 {policies}', FOLDER).batching
    assert batching is not None
    usual = QueuePolicy(9, 0.0025, allows_override=True)
    assert batching.queues == QueuePolicies((QueuePolicy(timeout_s=1.0, delays=True), usual, usual), default_level=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch: 1", ["config.pbtxt:1:1", 'no field named "max_batch"']),
        ("max_batch_size: many", ["config.pbtxt:1:17", "many"]),
        ("\n\ninput {", ["config.pbtxt:3:"]),
        ("max_batch_size: 1 max_batch_size: 2", ["config.pbtxt:1:", "max_batch_size"]),
        ("max_batch_size: -1", ["max_batch_size: -1", "must be 0 (no batch axis) or at least 1"]),
        ('name: "gpt"', ["name: 'gpt'", "must be the folder's name, 'bert'"]),
        ("input { data_type: TYPE_FP32 dims: [ 1 ] }", ["input[0]: name: not set"]),
        ('input { name: "x" dims: [ 1 ] }', ["input 'x': data_type: not set", "TYPE_BOOL, TYPE_UINT8", "TYPE_STRING"]),
        ('input { name: "x" data_type: 99 dims: [ 1 ] }', ["input 'x'", "data_type", "99"]),
        ('output { name: "y" data_type: TYPE_FP32 }', ["output 'y': dims: not set", "dims [ 1 ]"]),
        ('input { name: "x" data_type: TYPE_FP32 dims: [ 0 ] }', ["input 'x': dims: 0", "at least 1, or -1"]),
        ('input { name: "x" data_type: TYPE_FP32 dims: [ -2 ] }', ["input 'x': dims: -2", "at least 1, or -1"]),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }',
            ["input 'x': declared twice"],
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } '
            'parameters { key: "preheat.shape.x" value { string_value: "a,b" } }',
            ["input 'x': preheat.shape names 2 dimensions, dims has 1"],
        ),
        ("dynamic_batching {}", ["dynamic_batching: needs max_batch_size of at least 1, it is 0"]),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 5 }",
            ["dynamic_batching: preferred_batch_size: 5", "from 1 to max_batch_size, 4"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }",
            ["dynamic_batching: preferred_batch_size: 0", "from 1 to max_batch_size, 4"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 3600000001 }",
            ["dynamic_batching: max_queue_delay_microseconds: 3600000001: must be at most 3600000000"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 }",
            ["dynamic_batching: default_priority_level: 0: must be from 1, the highest, to priority_levels, 2"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 101 default_priority_level: 1 }",
            ["dynamic_batching: priority_levels: 101: must be at most 100"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { default_priority_level: 1 }",
            ["dynamic_batching: default_priority_level: 1: set priority_levels too"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 1 "
            "priority_queue_policy { key: 3 value { } } }",
            ["dynamic_batching: priority_queue_policy: 3: must be a level from 1 to priority_levels, 2"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { default_queue_policy { timeout_action: DELAY } }",
            ["default_queue_policy: timeout_action: DELAY: nothing times out; set default_timeout_microseconds"],
        ),
        (
            "max_batch_size: 4 dynamic_batching { default_queue_policy { timeout_action: 7 } }",
            ["default_queue_policy: timeout_action: 7: must be REJECT or DELAY"],
        ),
        ("instance_group { count: -1 }", ["instance_group: count: -1", "must be at least 1"]),
        ("instance_group { kind: KIND_CPU gpus: 0 }", ["instance_group: gpus: a group of KIND_CPU has none"]),
        ("instance_group { kind: 99 }", ["instance_group", "kind", "99"]),
        ("sequence_batching {}", ["sequence_batching: not supported; sequences are not served"]),
        (
            'parameters { key: "preheat.bucket" value { string_value: "1" } }',
            ["parameters: preheat.bucket: unknown parameter", "preheat.buckets, preheat.threads"],
        ),
    ],
)
def test_what_cannot_be_is_refused_by_file_key_value_and_what_is_allowed(text: str, expected: list[str]) -> None:
    message = refusal(text if "backend" in text else f'{text} backend: "eager"')
    assert [each for each in ["bert/config.pbtxt", *expected] if each not in message] == [], message


@pytest.mark.parametrize("name", ["a b", "-a", ".a", "ä", "a:b"])
def test_a_folder_whose_name_is_no_model_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"may only have letters, digits, '_', '-' and '\.' in its name"):
        parse_configuration('backend: "eager"', FOLDER.parent / name)


def test_every_datatype_of_the_schema_is_one_of_ours_and_back() -> None:
    assert [datatype_of(datatype_value(each), "here") for each in DataType] == list(DataType)
