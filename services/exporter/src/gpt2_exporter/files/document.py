"""One document of a file, as the reader of its format gives it."""

from typing import NamedTuple


class Place(NamedTuple):
    """Where reading goes on in a file."""

    offset: int
    """Bytes before it, decompressed."""
    number: int
    """Lines, rows or items before it."""


class FileDocument(NamedTuple):
    """One document."""

    name: str
    """What tells it from the others of its file, such as a number of line; empty when the file is the document."""
    text: str
    """The text; empty when there is a reason."""
    reason: str
    """Why it is unusable; empty when it is usable."""
    after: Place
    """Where reading goes on after it."""


START = Place(0, 0)
