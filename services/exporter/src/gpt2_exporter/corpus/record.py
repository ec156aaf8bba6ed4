"""What every source yields, usable or not, and what makes a document unusable."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

MISSING = "text missing"
NULL = "text null"
EMPTY = "text empty"
NOT_A_STRING = "text not a string"
BROKEN_TEXT = "broken UTF-8"
TOO_LARGE = "too large"

LARGEST_DOCUMENT = 256 << 20
"""Bytes that one document may have: more would not fit the Parquet page that it stands in, nor flat memory."""


class Record(NamedTuple):
    """One document as its source has it."""

    id: str
    """Name of the document in its source."""
    source: str
    """Where it came from, as a URI."""
    text: str
    """The text; empty when there is a reason."""
    reason: str
    """Why it is unusable; empty when it is usable."""
    place: Any
    """Where its source can go on after it."""


class TextSource(Protocol):
    """Documents in an order that does not change, which can be taken up after any of them."""

    @property
    def unit(self) -> str:
        """What progress counts."""

    @property
    def total(self) -> float:
        """Units altogether; 0 while unknown."""

    @property
    def fingerprint(self) -> str:
        """Names the data: equal fingerprints mean the same records in the same order."""

    def done(self, place: Any, read: int) -> float:
        """Units done after the record at a place, the `read`th."""

    def encode_place(self, place: Any) -> str:
        """Writes a place, to be given to `records` in another process."""

    def records(self, after: str | None) -> Iterator[Record]:
        """Yields the records, from the first one or from the one after a place."""


def unusable_reason(value: Any) -> str:
    """Why a value is no text; empty when it is one. `...` stands for a value that is not there."""
    if isinstance(value, str):
        return "" if value else EMPTY
    if value is ...:
        return MISSING
    return NULL if value is None else NOT_A_STRING
