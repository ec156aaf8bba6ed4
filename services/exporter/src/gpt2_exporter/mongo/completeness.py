"""Proves that an export holds every document of its snapshot: compares what was read with what the server counts.

Only where fewer were read than the server counted for the snapshot a second look is taken, at every `_id` there is now:
documents deleted since then explain a difference, documents that are there and were not read fail the export.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import ReadPreference
from pymongo.collection import Collection as MongoCollection

from gpt2_common.errors import DataLoss
from gpt2_exporter.mongo.identifier import CODEC, bracket_of, order_key, up_to
from gpt2_exporter.mongo.retrying import retried
from gpt2_exporter.mongo.snapshot import CollectionState, Query, narrowed

_BATCH_DOCUMENTS = 10_000


class Incomplete(DataLoss):
    """Documents of the snapshot were not read."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """What one collection should have given.

    Args:
        collection: The collection.
        query: Which documents of it.
        state: The snapshot of it.
        since: Greatest `_id` by bracket that a previous corpus holds.
        since_documents: How many documents that corpus holds of it.
        pause: Waits a number of seconds before another attempt to reach the server.
    """

    collection: MongoCollection
    query: Query
    state: CollectionState
    since: Mapping[str, Any]
    since_documents: int
    pause: Callable[[float], None] = time.sleep

    def check(self, read: int) -> None:
        """Checks the number of documents read, of all the snapshot has. Raises Incomplete where some were not read."""
        counted = self.state.documents - self.since_documents
        if read >= counted:
            return
        there = retried(self._count_there, self.pause)
        if read < there:
            raise self._lost(read, counted, there)

    def check_part(self, read: int, bracket: int, last: Any) -> None:
        """Checks the number of documents read where a limit ended the reading after the id `last` of a bracket."""
        ranges = [*self.state.greatest[:bracket], last]
        there = 0
        # Documents can come or go between two counts; what was there at both should have been read.
        for _ in range(2):
            there = retried(lambda: sum(map(self._count_range, ranges)), self.pause)
            if read >= there:
                return
        raise self._lost(read, there, there)

    def _count_range(self, last: Any) -> int:
        begin = self.since.get(bracket_of(last))
        return self.collection.count_documents(narrowed(self.query, up_to(last, begin)))

    def _count_there(self) -> int:
        """Documents that are there now and should have been read. The server compares no `_id` for it."""
        greatest = {bracket_of(identifier): order_key(identifier) for identifier in self.state.greatest}
        since = {bracket: order_key(identifier) for bracket, identifier in self.since.items()}
        # What a secondary lacks is no less part of the snapshot.
        primary = self.collection.with_options(codec_options=CODEC, read_preference=ReadPreference.PRIMARY_PREFERRED)
        with primary.find(self.query, {"_id": 1}, batch_size=_BATCH_DOCUMENTS) as found:
            there = 0
            for document in found:
                bracket, key = bracket_of(document["_id"]), order_key(document["_id"])
                # One of a bracket that the snapshot lacks was overlooked, or else added since then.
                is_later = bracket in greatest and key > greatest[bracket]
                there += not is_later and not (bracket in since and key <= since[bracket])
        return there

    def _lost(self, read: int, counted: int, there: int) -> Incomplete:
        name = self.collection.full_name
        if self.collection.read_preference == ReadPreference.PRIMARY:
            advice = (
                "if documents were added under smaller _ids while others were deleted, export again while nothing is "
                "written; else the server does not find all that it holds: use MongoDB or the server of `gpt2 stack up`"
            )
        else:
            advice = "a secondary can lag: set source.read_preference to READ_PREFERENCE_PRIMARY, or export again later"
        return Incomplete(
            f"{name}: the server returned {read} of {counted} documents that it counted for the snapshot, and holds "
            f"{there} of them now: {advice}",
            read=str(read),
            counted=str(counted),
        )
