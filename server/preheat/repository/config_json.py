"""A ModelConfig as JSON, the form in which models written in Python read it."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def as_json(message: Message) -> dict[str, Any]:
    """``message`` as plain dictionaries, lists and scalars, under the schema's own names.

    Triton's form: fields that are not set have their defaults, enums their names, and 64-bit integers are numbers,
    where protobuf's own JSON would make them strings. Messages that are not set are left out.
    """
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"]
            result[field.name] = {key: _scalar(values, value[key]) for key in value}
        elif hasattr(value, "extend"):  # repeated
            result[field.name] = [_scalar(field, element) for element in value]
        elif not field.has_presence or message.HasField(field.name):
            result[field.name] = _scalar(field, value)
    return result


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return as_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
