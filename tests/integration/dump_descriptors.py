"""Print, as JSON, everything that the generated modules named as arguments define.

A script of its own because one process can load only one definition of package `inference`. Files go by their stem, as
Preheat's .proto files have longer paths than tritonclient's; the order of declarations is left out, as nothing rests on
it.
"""

import importlib
import json
import sys
from pathlib import PurePath
from typing import TypeAlias

from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

Definition: TypeAlias = dict[str, object]


def describe_file(file: FileDescriptor) -> Definition:
    definition = FileDescriptorProto.FromString(file.serialized_pb)
    return {
        "package": definition.package,
        "syntax": definition.syntax,
        "imports": sorted(PurePath(name).stem for name in definition.dependency),
        "options": str(definition.options),
        "enums": {enum.name: describe_enum(enum) for enum in definition.enum_type},
        "messages": {
            message.name: describe_message(message, file.message_types_by_name[message.name])
            for message in definition.message_type
        },
        "services": {service.name: describe_service(service) for service in definition.service},
    }


def describe_message(definition: DescriptorProto, descriptor: Descriptor) -> Definition:
    return {
        "options": str(definition.options),
        "oneofs": sorted(oneof.name for oneof in definition.oneof_decl),
        "reserved_names": sorted(definition.reserved_name),
        "reserved_ranges": sorted(f"{reserved.start}:{reserved.end}" for reserved in definition.reserved_range),
        "extension_ranges": sorted(f"{extension.start}:{extension.end}" for extension in definition.extension_range),
        "fields": {field.name: describe_field(field, descriptor) for field in definition.field},
        "enums": {enum.name: describe_enum(enum) for enum in definition.enum_type},
        "messages": {
            nested.name: describe_message(nested, descriptor.nested_types_by_name[nested.name])
            for nested in definition.nested_type
        },
    }


def describe_field(definition: FieldDescriptorProto, message: Descriptor) -> Definition:
    # What follows from the definition without being written in it is known to the descriptor only.
    descriptor = message.fields_by_name[definition.name]
    return {
        "number": definition.number,
        "type": FieldDescriptorProto.Type.Name(definition.type),
        "type_name": definition.type_name,
        "label": FieldDescriptorProto.Label.Name(definition.label),
        "has_presence": descriptor.has_presence,
        "proto3_optional": definition.proto3_optional,
        "oneof": descriptor.containing_oneof.name if descriptor.containing_oneof else "",
        "is_map": bool(descriptor.message_type and descriptor.message_type.GetOptions().map_entry),
        "default": definition.default_value,
        "json_name": descriptor.json_name,
        "options": str(definition.options),
    }


def describe_enum(definition: EnumDescriptorProto) -> Definition:
    return {
        "options": str(definition.options),
        "reserved_names": sorted(definition.reserved_name),
        "reserved_ranges": sorted(f"{reserved.start}:{reserved.end}" for reserved in definition.reserved_range),
        "values": {value.name: {"number": value.number, "options": str(value.options)} for value in definition.value},
    }


def describe_service(definition: ServiceDescriptorProto) -> Definition:
    return {
        "options": str(definition.options),
        "methods": {method.name: describe_method(method) for method in definition.method},
    }


def describe_method(definition: MethodDescriptorProto) -> Definition:
    return {
        "request": definition.input_type,
        "response": definition.output_type,
        "client_streaming": definition.client_streaming,
        "server_streaming": definition.server_streaming,
        "options": str(definition.options),
    }


def main() -> None:
    files = [importlib.import_module(module).DESCRIPTOR for module in sys.argv[1:]]
    json.dump({PurePath(file.name).stem: describe_file(file) for file in files}, sys.stdout)


if __name__ == "__main__":
    main()
