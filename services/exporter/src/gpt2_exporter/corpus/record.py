"""What every source yields, usable or not, and what makes a document unusable."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

MISSING = "text missing"
NULL = "text null"
EMPTY = "text empty"
NOT_A_STRING = "text not a string"
IN_LIST = "text in a list, but list_separator is not set"
BROKEN_TEXT = "broken UTF-8"
BROKEN_BSON = "broken BSON"
TOO_LARGE = "too large"

LARGEST_DOCUMENT = 256 << 20
"""Bytes that one document may have: more would not fit the Parquet page that it stands in, nor flat memory."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents that follow one another in their source.

    How a source cuts its documents into batches has no effect on the corpus.
    """

    ids: Sequence[str] | pa.StringArray
    """Names of the documents in their source."""
    source: str
    """Where they came from, as a URI."""
    texts: Sequence[str] | pa.StringArray
    """Their texts; empty where there is a reason."""
    rejects: Mapping[int, str]
    """Why a document is unusable, by position in the batch."""
    place: Callable[[int], str]
    """Writes where the source can go on after the document at a position, for `batches` in another process."""
    done: float
    """Units of progress done after the batch."""


class TextSource(Protocol):
    """Documents in an order that does not change, which can be taken up after any of them."""

    @property
    def unit(self) -> str:
        """What progress counts."""

    @property
    def nothing(self) -> str:
        """What to say, and to do, where there is no document at all."""

    @property
    def total(self) -> float:
        """Units altogether; 0 while unknown."""

    @property
    def fingerprint(self) -> str:
        """Names the data: equal fingerprints mean the same documents in the same order."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What the corpus says about where it came from, once all was read."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """What `summary.json` says of the source beside the counts."""

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yields the documents, from the first one or from the one after a place."""


def unusable_reason(value: Any) -> str:
    """Why a value is no text; empty when it is one. `...` stands for a value that is not there."""
    if isinstance(value, str):
        return "" if value else EMPTY
    if value is ...:
        return MISSING
    return NULL if value is None else NOT_A_STRING
