"""Proves that an export has every document of its snapshot: compares what was read with the counts of the server.

Where fewer were read than the server counted for the snapshot, it lists every `_id` that exists now: documents deleted
since the snapshot explain a difference; documents that exist and were not read fail the export.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import ReadPreference
from pymongo.collection import Collection as MongoCollection

from gpt2_common.errors import DataLoss
from gpt2_exporter.mongo.connection import retried
from gpt2_exporter.mongo.identifiers import CODEC, bracket_of, order_key, up_to
from gpt2_exporter.mongo.snapshot import CollectionState, Query, narrowed

_BATCH_DOCUMENTS = 10_000


class IncompleteExport(DataLoss):
    """Documents of the snapshot were not read."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """The documents that the export of one collection must have.

    Args:
        collection: The collection.
        query: The filter of the source.
        state: The collection at the snapshot.
        previous_max_ids: Greatest `_id` in the previous export, by bracket of types.
        previous_documents: Documents of the collection in the previous export.
        pause: Waits a number of seconds before another attempt to reach the server.
    """

    collection: MongoCollection
    query: Query
    state: CollectionState
    previous_max_ids: Mapping[str, Any]
    previous_documents: int
    pause: Callable[[float], None] = time.sleep

    def check(self, read: int) -> None:
        """Checks the number of documents read of the whole snapshot. Raises IncompleteExport when some are missing."""
        counted = self.state.documents - self.previous_documents
        if read >= counted:
            return
        existing = retried(self._count_existing, self.pause)
        if read < existing:
            raise self._lost(read, counted, existing)

    def check_until(self, read: int, bracket: int, last: Any) -> None:
        """Checks the number of documents read where a limit ended reading after the id `last` of a bracket."""
        ranges = [*self.state.max_ids[:bracket], last]
        existing = 0
        # Documents can come or go between two counts; what both counts include must have been read.
        for _ in range(2):
            existing = retried(lambda: sum(map(self._count_range, ranges)), self.pause)
            if read >= existing:
                return
        raise self._lost(read, existing, existing)

    def _count_range(self, last: Any) -> int:
        begin = self.previous_max_ids.get(bracket_of(last))
        return self.collection.count_documents(narrowed(self.query, up_to(last, begin)))

    def _count_existing(self) -> int:
        """Counts the documents that exist now and should have been read. The server compares no `_id` for it."""
        max_keys = {bracket_of(identifier): order_key(identifier) for identifier in self.state.max_ids}
        previous = {bracket: order_key(identifier) for bracket, identifier in self.previous_max_ids.items()}
        # A document that a secondary lacks is still part of the snapshot.
        primary = self.collection.with_options(codec_options=CODEC, read_preference=ReadPreference.PRIMARY_PREFERRED)
        with primary.find(self.query, {"_id": 1}, batch_size=_BATCH_DOCUMENTS) as found:
            existing = 0
            for document in found:
                bracket, key = bracket_of(document["_id"]), order_key(document["_id"])
                # One of a bracket that the snapshot lacks was missed, or else added since then.
                is_later = bracket in max_keys and key > max_keys[bracket]
                existing += not is_later and not (bracket in previous and key <= previous[bracket])
        return existing

    def _lost(self, read: int, counted: int, existing: int) -> IncompleteExport:
        name = self.collection.full_name
        if self.collection.read_preference == ReadPreference.PRIMARY:
            advice = (
                "if documents were added under smaller _ids while others were deleted, export again while nothing is "
                "written; else the server does not find all that it holds: use MongoDB or the server of `gpt2 stack up`"
            )
        else:
            advice = "a secondary can lag: set source.read_preference to READ_PREFERENCE_PRIMARY, or export again later"
        return IncompleteExport(
            f"{name}: the server returned {read} of {counted} documents that it counted for the snapshot, and holds "
            f"{existing} of them now: {advice}",
            read=str(read),
            counted=str(counted),
        )
