"""The rules of a field, as its descriptor has them."""

from functools import cache

from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor

from gpt2.validation.v1 import rules_pb2


@cache
def rules_of(field: FieldDescriptor) -> rules_pb2.FieldRules:
    """The rules of a field; empty where it has none."""
    return field.GetOptions().Extensions[rules_pb2.field]


@cache
def is_required(field: FieldDescriptor | OneofDescriptor) -> bool:
    """Whether a field, or one of the fields of a oneof, must be set."""
    if isinstance(field, OneofDescriptor):
        return field.GetOptions().Extensions[rules_pb2.oneof].required
    return rules_of(field).required


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry
