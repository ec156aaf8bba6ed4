"""Tables that commands print."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 1000
"""Width of tables in pipes and files, so that they are never wrapped."""

_ROWS_MEASURED = 200
"""Rows that determine the column widths of a long table."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Prints a table. Cells are plain text, without markup or control characters."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    console.print(make_table(columns, rows, title))


def print_long_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table of any length incrementally: short ones as `print_table`, long ones as plain columns."""
    coming = iter(rows)
    first = list(islice(coming, _ROWS_MEASURED + 1))
    if len(first) <= _ROWS_MEASURED:
        print_table(columns, first)
        return
    widths = [max(len(str(row[number])) for row in (columns, *first)) for number in range(len(columns))]
    for row in chain([columns], first, coming):
        cells = (_plain(str(cell)).ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A table of plain text."""
    table = Table(*columns, title=None if title is None else Text(title), title_justify="left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _plain(text: str) -> str:
    """The text with control characters replaced."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)
