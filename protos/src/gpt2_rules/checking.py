"""Checks whole messages against the rules of their fields."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from gpt2.validation.v1 import rules_pb2
from gpt2_rules.descriptions import describe, describe_count, describe_length, describe_number, describe_text
from gpt2_rules.reading import is_map, is_required, rules_of

Violation = tuple[str, str]
"""A field's path in the message, such as `job.plan.stages[0].name`, and what is wrong with it."""

_MAX_VALUE_CHARACTERS = 60
# The fields of protobuf's well-known types have no rules.
_WELL_KNOWN = "google.protobuf."


def violations(message: Message) -> list[Violation]:
    """Returns all violations of the rules in a message and its nested messages, in the order of the fields."""
    return list(_in_message(message, ""))


def _in_message(message: Message, prefix: str) -> Iterator[Violation]:
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and field.name == oneof.fields[0].name:
            yield from _in_oneof(message, oneof, prefix)
        path = prefix + field.name
        value = getattr(message, field.name)
        if field.is_repeated:
            yield from _in_map(field, value, path) if is_map(field) else _in_list(field, value, path)
        elif _is_set(message, field, value):
            yield from check_value(field, rules_of(field), value, path)
        elif is_required(field):
            yield path, "is required"


def _in_oneof(message: Message, oneof: OneofDescriptor, prefix: str) -> Iterator[Violation]:
    if is_required(oneof) and message.WhichOneof(oneof.name) is None:
        yield prefix + oneof.name, f"is required: set {' or '.join(member.name for member in oneof.fields)}"


def _is_set(message: Message, field: FieldDescriptor, value: Any) -> bool:
    return message.HasField(field.name) if field.has_presence else value != field.default_value


def _in_list(field: FieldDescriptor, items: Sequence[Any], path: str) -> Iterator[Violation]:
    rules = rules_of(field)
    yield from _in_count(rules, len(items), path)
    if rules.HasField("value") or field.message_type is not None or field.enum_type is not None:
        for index, item in enumerate(items):
            yield from check_value(field, rules, item, f"{path}[{index}]")
    if rules.list.unique and len(set(items)) < len(items):
        seen = set()
        for index, item in enumerate(items):
            if item in seen:
                yield f"{path}[{index}]", f"{_format_value(item)} is there twice: remove one of them"
            seen.add(item)


def _in_map(field: FieldDescriptor, items: Mapping[Any, Any], path: str) -> Iterator[Violation]:
    rules = rules_of(field)
    value_field = field.message_type.fields_by_name["value"]
    yield from _in_count(rules, len(items), path)
    for key in sorted(items):
        place = f"{path}[{_format_value(key)}]"
        if rules.HasField("key"):
            yield from ((place, f"the key {description}") for _, description in _in_text(rules.key, key, place))
        yield from check_value(value_field, rules, items[key], place)


def _in_count(rules: rules_pb2.FieldRules, count: int, path: str) -> Iterator[Violation]:
    if not count:
        if rules.required:
            counts = describe_count(rules.list)
            yield path, f"is required: {counts}" if counts else "is required"
        return
    too_many = rules.list.HasField("max_items") and count > rules.list.max_items
    if too_many or count < rules.list.min_items:
        yield path, f"must have {describe_count(rules.list)}, not {count:,}"


def check_value(field: FieldDescriptor, rules: rules_pb2.FieldRules, value: Any, path: str) -> Iterator[Violation]:
    """Checks a single value, or one item of a list or map. The values of a map follow the rules of the map."""
    if field.message_type is not None:
        if not field.message_type.full_name.startswith(_WELL_KNOWN):
            yield from _in_message(value, path + ".")
    elif field.enum_type is not None:
        if value not in field.enum_type.values_by_number:
            yield path, f"must be {describe(field)}, not {value}"
    elif rules.HasField("number"):
        if not _is_allowed(rules.number, value):
            yield path, f"must be {describe_number(rules.number)}, not {value}"
    elif rules.HasField("text"):
        yield from _in_text(rules.text, value, path)


def _is_allowed(rules: rules_pb2.NumberRules, number: float) -> bool:
    if number in rules.also:
        return True
    return math.isfinite(number) and not (
        (rules.HasField("minimum") and number < rules.minimum)
        or (rules.HasField("exclusive_minimum") and number <= rules.exclusive_minimum)
        or (rules.HasField("maximum") and number > rules.maximum)
        or (rules.HasField("exclusive_maximum") and number >= rules.exclusive_maximum)
    )


def _in_text(rules: rules_pb2.TextRules, text: str, path: str) -> Iterator[Violation]:
    """Yields the first violation of a string."""
    size = len(text.encode(errors="surrogatepass")) if rules.HasField("max_bytes") else 0
    if not text and (rules.min_length or rules.pattern):
        yield path, "must not be empty"
    elif rules.one_of and text not in rules.one_of:
        yield path, f"must be {describe_text(rules)}, not {_format_value(text)}"
    elif len(text) < rules.min_length or (rules.HasField("max_length") and len(text) > rules.max_length):
        yield path, f"must have {describe_length(rules)}, not {len(text):,}"
    elif size > rules.max_bytes:
        yield path, f"must have {describe_length(rules)}, not {size:,}"
    elif rules.pattern and not _compiled(rules.pattern).fullmatch(text):
        yield path, f"must be {describe_text(rules)}, not {_format_value(text)}"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _format_value(value: Any) -> str:
    """A value in an error, truncated."""
    if isinstance(value, str) and len(value) > _MAX_VALUE_CHARACTERS:
        return f"{value[:_MAX_VALUE_CHARACTERS]!r}..."
    return repr(value)
