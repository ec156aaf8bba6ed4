"""Parsing of messages from mappings of field names to values, as in YAML; reports all violations at once."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, TypeVar, cast

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gpt2_rules.checking import Violation, violations
from gpt2_rules.reading import is_map

Form = TypeVar("Form", bound=Message)

_KINDS: Mapping[int, str] = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number of 32 bits, not negative",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number of 64 bits, not negative",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "a text",
}
_NUMBERS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)

_DOES_NOT_FIT = (json_format.ParseError, TypeError, ValueError, AttributeError, OverflowError)


def read_form(content: Any, kind: type[Form]) -> tuple[Form, list[Violation]]:
    """Parses a message. Returns it with its valid fields, and the violations of the others.

    Args:
        content: Fields by name.
        kind: The message.
    """
    fitting, violations = _read_message("", content, cast(Descriptor, kind.DESCRIPTOR))
    message = kind()
    try:
        json_format.ParseDict(fitting, message)
    except _DOES_NOT_FIT as error:
        # What no field shows by itself: two of a `oneof`, or one field under both of its names.
        return kind(), [*violations, ("", " ".join(str(error).split()))]
    return message, violations


def violations_besides(message: Message, unread: Sequence[Violation]) -> list[Violation]:
    """Returns the violations of the rules in a message, except those that are caused by unparsed fields.

    Args:
        message: The parsed message.
        unread: The violations that `read_form` returned.
    """
    oneofs = message.DESCRIPTOR.oneofs_by_name

    def is_unread(path: str) -> bool:
        # The field, or those of which one must be set.
        names = [field.name for field in oneofs[path].fields] if path in oneofs else [path]
        return any(
            not other or is_inside(name, other) or is_inside(other, name) for name in names for other, _ in unread
        )

    return [violation for violation in violations(message) if not is_unread(violation[0])]


def is_inside(path: str, other: str) -> bool:
    """Whether a path is that of a field, or of one inside it."""
    return path == other or path.startswith((f"{other}.", f"{other}["))


def nearest_name(name: object, known: Sequence[str]) -> str:
    """Advice on an unknown name: the most similar known name, otherwise all of them."""
    near = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"


def join_path(path: str, name: object) -> str:
    """The path of what is called `name` in what is at `path`; empty for the top."""
    text = name if isinstance(name, str) and name.isprintable() else repr(name)
    return f"{path}.{text}" if path else text


def _read_message(where: str, content: Any, message: Descriptor) -> tuple[dict[str, Any], list[Violation]]:
    """The part of a mapping that fits a message, and what is wrong with the rest."""
    if not isinstance(content, Mapping):
        return {}, [(where, f"must be a mapping of fields to values, not {_format_value(content)}")]
    fields = {name: field for field in message.fields for name in (field.name, field.camelcase_name)}
    fitting: dict[str, Any] = {}
    mistakes: list[Violation] = []
    for name, value in content.items():
        place = join_path(where, name)
        if name not in fields:
            mistakes.append((place, f"unknown field; {nearest_name(name, list(message.fields_by_name))}"))
        elif value is not None:
            fitting[name], wrong = _read_field(place, value, fields[name])
            mistakes += wrong
    for mistake, names in list(_several_of_one(where, fitting, fields)):
        mistakes.append(mistake)
        for name in names[1:]:
            del fitting[name]
    return {name: value for name, value in fitting.items() if value is not None}, mistakes


def _read_field(place: str, value: Any, field: FieldDescriptor) -> tuple[Any, list[Violation]]:
    """The part of a field's value that fits, None where nothing does, and what is wrong with the rest."""
    if is_map(field):
        return _read_map(place, value, field)
    if field.is_repeated:
        return _read_list(place, value, field)
    if _is_plain_message(field):
        return _read_message(place, value, field.message_type)
    problem = _problem(value, value, field)
    return (None, [(place, problem)]) if problem else (value, [])


def _read_list(place: str, value: Any, field: FieldDescriptor) -> tuple[Any, list[Violation]]:
    if not isinstance(value, list):
        return None, [(place, f"must be a list, not {_format_value(value)}; write [{_format_value(value)}] for one")]
    items, mistakes = [], []
    for number, item in enumerate(value):
        inside = f"{place}[{number}]"
        if _is_plain_message(field):
            item, wrong = _read_message(inside, item, field.message_type)
            mistakes += wrong
        elif problem := _problem(item, [item], field):
            mistakes.append((inside, problem))
            continue
        items.append(item)
    return items, mistakes


def _read_map(place: str, value: Any, field: FieldDescriptor) -> tuple[Any, list[Violation]]:
    if not isinstance(value, Mapping):
        return None, [(place, f"must be a mapping of names to values, not {_format_value(value)}")]
    items, mistakes = {}, []
    for name, item in value.items():
        inside = join_path(place, name)
        if not isinstance(name, str):
            mistakes.append((inside, f"the name must be a text, not {_format_value(name)}; put it in quotes"))
        elif problem := _problem(item, {name: item}, field):
            mistakes.append((inside, problem))
        else:
            items[name] = item
    return items, mistakes


def _problem(value: Any, content: Any, field: FieldDescriptor) -> str:
    """Why protobuf does not take a value; empty where it does.

    Args:
        value: The value.
        content: The field's content with nothing else in it: a list or a mapping of the value, or the value.
        field: The field.
    """
    kind = field.message_type.fields_by_name["value"] if is_map(field) else field
    if isinstance(value, bool) and kind.cpp_type in _NUMBERS:
        return f"must be a number, not {_format_value(value)}"
    message = message_factory.GetMessageClass(field.containing_type)()
    try:
        json_format.ParseDict({field.name: content}, message)
    except _DOES_NOT_FIT as error:
        if kind.message_type is not None:
            return f"does not fit: {' '.join(str(error).split())}"
        return f"must be {_kind(kind)}, not {_format_value(value)}{_quotes(value, kind)}"
    return ""


def _several_of_one(
    where: str, fitting: Mapping[str, Any], fields: Mapping[str, FieldDescriptor]
) -> Iterator[tuple[Violation, list[str]]]:
    """Fields of which only one may be given, and fields that are there under both of their names."""
    by_choice: dict[str, list[str]] = {}
    # In one order, whoever reads it: a Struct does not keep that of the writing.
    for name in sorted(fitting, key=lambda name: (fields[name].number, name)):
        field = fields[name]
        choice = field.containing_oneof.name if field.containing_oneof else field.name
        by_choice.setdefault(choice, []).append(name)
    for names in by_choice.values():
        if len(names) > 1:
            others = " and ".join(names[:-1])
            yield (join_path(where, names[-1]), f"excludes {others}; remove all but one"), names


def _kind(field: FieldDescriptor) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        names = [value.name for value in field.enum_type.values if value.number]
        return f"one of {', '.join(names)}"
    return _KINDS[field.cpp_type]


def _quotes(value: Any, field: FieldDescriptor) -> str:
    """What to do where YAML has read a number, a date or a truth value where a text is meant."""
    scalar = not isinstance(value, list | dict | None)
    return "; put it in quotes" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and scalar else ""


def _format_value(value: Any) -> str:
    """A value in an error in YAML's notation, truncated."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    # A date is what YAML makes of 2026-01-31.
    return str(value) if isinstance(value, date) else reprlib.repr(value)


def _is_plain_message(field: FieldDescriptor) -> bool:
    """Whether the value is a mapping of fields, which those of maps and of protobuf's own messages are not."""
    kind = field.message_type
    return kind is not None and not is_map(field) and not kind.full_name.startswith("google.")
