"""One document of a file, as the readers of all formats return it."""

from typing import NamedTuple


class Place(NamedTuple):
    """A position to resume reading a file at."""

    offset: int
    """Bytes before it, decompressed."""
    number: int
    """Lines, rows or items before it."""


class FileDocument(NamedTuple):
    """One document."""

    name: str
    """Its name in the file, such as a line number; empty where the file is the document."""
    text: str
    """The text; empty when there is a reason."""
    reason: str
    """Why it is unusable; empty when it is usable."""
    after: Place
    """The position after it."""


START = Place(0, 0)
