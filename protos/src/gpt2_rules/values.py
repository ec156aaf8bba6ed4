"""Values outside messages, as files hold them, checked by the rules of the fields that they come from."""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gpt2_rules.checking import Violation, check_value
from gpt2_rules.reading import rules_of

_TYPES: Mapping[int, tuple[tuple[type, ...], str]] = {
    FieldDescriptor.CPPTYPE_INT32: ((int,), "a whole number"),
    FieldDescriptor.CPPTYPE_INT64: ((int,), "a whole number"),
    FieldDescriptor.CPPTYPE_DOUBLE: ((int, float), "a number"),
    FieldDescriptor.CPPTYPE_BOOL: ((bool,), "true or false"),
    FieldDescriptor.CPPTYPE_STRING: ((str,), "a text"),
}
"""Types of JSON by those of fields, and what they are called."""


def value_violations(field: FieldDescriptor, value: Any, path: str = "") -> list[Violation]:
    """What breaks the rules of a field in a value of JSON. Every value counts as set, also the default of its type.

    Args:
        field: A field that is no map.
        value: The value.
        path: What to call it. Default: the field's name.
    """
    return list(_in_value(field, value, path or field.name))


def content_violations(message: Descriptor, content: Mapping[str, Any]) -> list[Violation]:
    """What breaks the rules of a message's fields in values by their names; other names and nulls are passed over."""
    return list(_in_content(message, content, ""))


def _in_content(message: Descriptor, content: Mapping[str, Any], prefix: str) -> Iterator[Violation]:
    for name, value in content.items():
        field = message.fields_by_name.get(name)
        if field is not None and value is not None:
            yield from _in_value(field, value, prefix + name)


def _in_value(field: FieldDescriptor, value: Any, path: str) -> Iterator[Violation]:
    if field.is_repeated:
        if not isinstance(value, list | tuple):
            yield path, f"must be a list, not {value!r:.60}"
            return
        for index, item in enumerate(value):
            yield from _in_item(field, item, f"{path}[{index}]")
    else:
        yield from _in_item(field, value, path)


def _in_item(field: FieldDescriptor, value: Any, path: str) -> Iterator[Violation]:
    if field.message_type is not None:
        if isinstance(value, Mapping):
            yield from _in_content(field.message_type, value, path + ".")
        else:
            yield path, f"must be a mapping, not {value!r:.60}"
        return
    types, kind = _TYPES[field.cpp_type]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        yield path, f"must be {kind}, not {value!r:.60}"
    else:
        yield from check_value(field, rules_of(field), value, path)
