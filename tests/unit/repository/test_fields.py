"""Every field of Triton's ModelConfig has a verdict, and what is refused is refused by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.fields import HONOURED, INERT, REFUSED, Verdict, refuse_unsupported, verdict

FILE = Path("repository/m/config.pbtxt")


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def walk(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field at and below ``message``, by its dotted path; maps are one field."""
    for field in message.fields:
        path = prefix + field.name
        yield path, field
        if field.message_type is not None and not is_map(field):
            yield from walk(field.message_type, f"{path}.")


FIELDS = dict(walk(cast("Descriptor", pb.ModelConfig.DESCRIPTOR)))
LEAVES = [path for path, field in FIELDS.items() if field.message_type is None or is_map(field)]


def config_with(path: str) -> pb.ModelConfig:
    """A configuration in which the field at ``path`` is set, and what is above it."""
    config = pb.ModelConfig()
    message: Message = config
    *above, last = path.split(".")
    for name in above:
        field = message.DESCRIPTOR.fields_by_name[name]
        message = getattr(message, name).add() if field.is_repeated else getattr(message, name)
        message.SetInParent()
    set_field(message, message.DESCRIPTOR.fields_by_name[last])
    return config


def set_field(message: Message, field: FieldDescriptor) -> None:
    if is_map(field):
        numbered = field.message_type.fields_by_name["key"].cpp_type != FieldDescriptor.CPPTYPE_STRING
        key = "1" if numbered else '"k"'
        value = "{}" if field.message_type.fields_by_name["value"].message_type else '"v"'
        text_format.Merge(f"{field.name} {{ key: {key} value: {value} }}", message)
    elif field.message_type is not None:
        text_format.Merge(f"{field.name} {{}}", message)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text_format.Merge(f'{field.name}: "v"', message)
    else:
        text_format.Merge(f"{field.name}: {'true' if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else 1}", message)


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_has_a_verdict(path: str) -> None:
    assert verdict(path) in Verdict


@pytest.mark.parametrize("path", [*HONOURED, *REFUSED, *INERT])
def test_every_verdict_is_on_a_field_there_is(path: str) -> None:
    assert path in FIELDS


def test_no_field_has_two_verdicts() -> None:
    assert len({*HONOURED, *REFUSED, *INERT}) == len(HONOURED) + len(REFUSED) + len(INERT)


def test_a_field_that_nothing_covers_has_no_verdict() -> None:
    with pytest.raises(KeyError):
        verdict("model_colour.red")


# Fields of these hold nothing that acts here: each of their leaves must have been decided on by itself.
@pytest.mark.parametrize("container", ["optimization", "model_transaction_policy", "response_cache"])
def test_a_container_that_is_honoured_as_far_as_it_is_empty_decides_on_each_of_its_leaves(container: str) -> None:
    for path in LEAVES:
        if path.startswith(f"{container}."):
            assert verdict(path) is not Verdict.HONOURED, path


@pytest.mark.parametrize("path", [path for path in FIELDS if verdict(path) is Verdict.REFUSED])
def test_a_refused_field_fails_by_its_name_and_says_what_to_do_instead(path: str) -> None:
    refused = next(each for each in REFUSED if f"{path}.".startswith(f"{each}."))
    with pytest.raises(InvalidConfig) as caught:
        refuse_unsupported(config_with(path), FILE)
    assert str(caught.value) == f"{FILE}: {refused}: not supported; {REFUSED[refused]}"


@pytest.mark.parametrize("path", [path for path in LEAVES if verdict(path) is not Verdict.REFUSED])
def test_a_field_that_is_honoured_or_inert_passes(path: str) -> None:
    refuse_unsupported(config_with(path), FILE)


def test_a_refused_field_is_found_in_the_second_of_several() -> None:
    config = text_format.Parse('input { name: "a" } input { name: "b" is_shape_tensor: true }', pb.ModelConfig())
    with pytest.raises(InvalidConfig, match=r"input\.is_shape_tensor: not supported"):
        refuse_unsupported(config, FILE)
