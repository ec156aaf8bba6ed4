"""The corpus artifact: documents in Parquet shards, with a summary of what was read and left out."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Self

SUMMARY_FILE = "summary.json"
"""Counts of documents and characters, by reason and script, for people."""
REJECTS_FILE = "rejects.jsonl"
"""The first documents that were left out, with the reason; one JSON object a line."""

ID, SOURCE, TEXT = COLUMNS = ("id", "source", "text")
"""Columns of the shards: Parquet strings without nulls. `source` is a URI, `id` the document's name in it."""

SHARD_PATTERN = "corpus-*.parquet"
"""Matches the shards; sorted by name they are in the order of the documents."""

SNAPSHOT_PROPERTY = "snapshot"
"""Identifies the data that was read."""
REACHED_PROPERTY = "reached"
"""How far reading came, as a snapshot, where a limit ended it before the end."""
SOURCE_PROPERTY = "source"
"""Where the documents came from, for people."""

INDEXED: Mapping[str, type] = MappingProxyType({"documents": int, "bytes": int, "rejected": int})
"""Counts and properties that pipelines keep in their metadata."""


def shard_name(index: int) -> str:
    """File name of a shard, counted from 0."""
    return f"corpus-{index:05d}.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusCounts:
    """The manifest's counts."""

    documents: int
    bytes: int
    """Bytes of the texts in UTF-8."""
    rejected: int
    """Unusable documents that were left out."""
    filtered: int = 0
    """Usable documents that the request's options left out."""

    def to_counts(self) -> dict[str, float]:
        """The counts by name; `filtered` only where it is not 0."""
        counts: dict[str, float] = {"documents": self.documents, "bytes": self.bytes, "rejected": self.rejected}
        return {**counts, "filtered": self.filtered} if self.filtered else counts

    @classmethod
    def from_counts(cls, counts: Mapping[str, float]) -> Self:
        """Reads the counts; what is not counted is 0."""
        return cls(**{item.name: int(counts.get(item.name, 0)) for item in fields(cls)})
