"""The interface of a source of documents: MongoDB and files implement it, the pipeline reads from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents of a source, usable or not.

    How a source cuts its documents into batches does not affect the corpus.
    """

    ids: Sequence[str] | pa.StringArray
    """Ids of the documents in their source."""
    source: str
    """URI of the collection or file that they come from."""
    texts: Sequence[str] | pa.StringArray
    """Their texts; empty for the rejected ones."""
    rejects: Mapping[int, str]
    """Reason of each unusable document, by position in the batch."""
    resume_token: Callable[[int], str]
    """Returns the token to resume reading with after the document at a position, also in another process."""
    progress: float
    """Units of progress done after the batch."""


class TextSource(Protocol):
    """Documents in a fixed order. Reading can resume after any of them."""

    @property
    def unit(self) -> str:
        """Unit of progress, such as `documents`."""

    @property
    def total(self) -> float:
        """Units of progress in all; 0 while unknown."""

    @property
    def no_documents(self) -> str:
        """Error message for a source without any document: what is wrong, and what to do."""

    @property
    def fingerprint(self) -> str:
        """Identifies the data: equal fingerprints mean the same documents in the same order."""

    @property
    def properties(self) -> Mapping[str, str]:
        """Properties of the corpus artifact that describe its origin; complete once everything is read."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Entries of `summary.json` besides the counts."""

    def batches(self, resume_after: str | None) -> Iterator[Batch]:
        """Yields the documents from the first one, or from the one after a resume token."""
