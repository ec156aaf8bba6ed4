"""What commands print: tables for people, JSON for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

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
    """Prints one JSON value as one line."""
    print(json.dumps(content, ensure_ascii=False), flush=True)
