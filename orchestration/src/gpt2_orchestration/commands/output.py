"""JSON output of commands. `tables.py` has their tables."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # noqa: F401 - registers the types in a job's error for JSON

from gpt2_orchestration.commands.text_io import is_unicode

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def as_json(message: Message) -> dict[str, Any]:
    """A message in protobuf's JSON form, with the names of the .proto and with what is unset."""
    content: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return content


def print_json_array(items: Iterable[Mapping[str, Any]]) -> None:
    """Prints a JSON array incrementally, an item per line; nothing before the first item."""
    in_ascii = not is_unicode(sys.stdout)
    separator = "["
    for item in items:
        print(separator, json.dumps(item, ensure_ascii=in_ascii), sep="", end="")
        separator = ",\n"
    print("[]" if separator == "[" else "]", flush=True)


def print_json(content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Prints one JSON value as one line, in ASCII where standard output has no Unicode."""
    print(json.dumps(content, ensure_ascii=not is_unicode(sys.stdout)), flush=True)
