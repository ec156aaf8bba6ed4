"""Requests of start calls in the form that people write: mappings with the names of the protos' fields."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)


class RequestFormError(Exception):
    """A request is not as it should be; the message says where, in one line."""


def parse_request(where: str, content: Any, kind: type[Request]) -> Request:
    """Reads a request.

    Args:
        where: What it is, for errors.
        content: Fields by name; None for none.
        kind: The message.

    Raises:
        RequestFormError: A field is unknown, or its value does not fit.
    """
    _check_names(where, content or {}, cast(Descriptor, kind.DESCRIPTOR))
    try:
        return json_format.ParseDict(content or {}, kind())
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
        raise RequestFormError(f"{where}: {' '.join(str(error).split())}") from error


def _check_names(where: str, content: Any, message: Descriptor) -> None:
    """Finds misspelt fields, which protobuf would tell of by names that nobody has written."""
    if not isinstance(content, Mapping):
        raise RequestFormError(f"{where}: must be a mapping of fields to values")
    fields = {name: field for field in message.fields for name in (field.name, field.camelcase_name)}
    for name, value in content.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), message.fields_by_name, 1)
            known = f"{near[0]} is" if near else f"there are {', '.join(message.fields_by_name)}"
            raise RequestFormError(f"{where}.{name} is no field; {known}")
        for item in value if isinstance(value, list) else [value]:
            if item is not None and _is_plain_message(fields[name]):
                _check_names(f"{where}.{name}", item, fields[name].message_type)


def _is_plain_message(field: FieldDescriptor) -> bool:
    """Whether the value is a mapping of fields, which those of maps and of protobuf's own messages are not."""
    kind = field.message_type
    return kind is not None and not kind.GetOptions().map_entry and not kind.full_name.startswith("google.")
