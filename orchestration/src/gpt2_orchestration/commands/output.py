"""What commands print: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from typing import IO, Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # noqa: F401 - a job's error has them inside, and JSON needs to know them
from rich.console import Console
from rich.table import Table
from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_PIPE_COLUMNS = 1000
"""Wide enough that a table in a pipe or a file is never folded."""


def prepare_output() -> None:
    """Lets standard output and error show escapes for the characters that their encodings lack."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not _is_unicode(stream):
            stream.reconfigure(errors="backslashreplace")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Prints a table. What is in it is shown as it is, without markup or control characters."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    console.print(make_table(columns, rows, title))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A table whose content is shown as it is."""
    table = Table(*columns, title=None if title is None else Text(title), title_justify="left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def as_json(message: Message) -> dict[str, Any]:
    """A message in protobuf's JSON form, with the names of the .proto and with what is unset."""
    content: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return content


def print_json(content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Prints one JSON value as one line, in ASCII where standard output has no Unicode."""
    print(json.dumps(content, ensure_ascii=not _is_unicode(sys.stdout)), flush=True)


def _is_unicode(stream: IO[str]) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
