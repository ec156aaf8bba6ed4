"""Reads the documents of a snapshot in the order of `_id`, without losing one when a cursor or a server is lost.

Reading does not rely on the life of a cursor: whenever one ends, for whatever reason, the next query continues after
the last `_id` read, until one returns nothing. Expired sessions, elections and restarts of servers only cost time.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import PyMongoError

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_contracts.corpus import REACHED_PROPERTY, SOURCE_PROPERTY
from gpt2_exporter.corpus.source import Batch
from gpt2_exporter.mongo.completeness import Completeness
from gpt2_exporter.mongo.connection import MAX_CONSECUTIVE_FAILURES, Server, is_transient, pause_seconds
from gpt2_exporter.mongo.decoding import Documents, decode_documents, last_document
from gpt2_exporter.mongo.extended_json import parse_filter, parse_projection
from gpt2_exporter.mongo.identifiers import from_json, is_alone, order_key, to_json, up_to
from gpt2_exporter.mongo.prefetching import prefetch
from gpt2_exporter.mongo.previous_export import PreviousExport
from gpt2_exporter.mongo.ranges import IdRange, OrderCheck, cut_range
from gpt2_exporter.mongo.snapshot import CollectionState, Snapshot, narrowed, read_preference
from gpt2_exporter.mongo.text import TextRule

_BATCH_DOCUMENTS = 1000
_BATCHES_AHEAD = 4


@dataclass(frozen=True, slots=True)
class _Position:
    """A document that was read; reading resumes after it."""

    collection: int
    """Index among the collections of the source."""
    bracket: int
    """Index among the brackets of types that the snapshot has of the collection."""
    identifier: Any
    """Its `_id`."""
    counts: Sequence[int]
    """Documents of each collection read so far, with this one."""

    def token(self) -> str:
        return json.dumps([self.collection, self.bracket, to_json(self.identifier), list(self.counts)])

    @classmethod
    def parse(cls, token: str) -> "_Position":
        collection, bracket, identifier, counts = json.loads(token)
        return cls(collection, bracket, from_json(identifier), counts)


class MongoDocuments:
    """The documents of a snapshot.

    Args:
        server: The server to read from.
        source: What to read.
        snapshot: Which documents.
        previous: The export that this one continues.
        readers: Ranges of `_id` to read at once, from 1.
        pause: Waits a number of seconds before another attempt to reach the server.
    """

    unit = "documents"

    def __init__(
        self,
        server: Server,
        source: pb.MongoSource,
        snapshot: Snapshot,
        previous: PreviousExport | None = None,
        readers: int = 1,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._source = source
        self._snapshot = snapshot
        self._previous = previous or PreviousExport.none(source)
        self._readers = readers
        self._pause = pause
        self._query = parse_filter(source.filter)
        self._rule = TextRule.of(source)
        self._projection = parse_projection(source.projection, self._rule.paths)
        database = server.client.get_database(source.database, read_preference=read_preference(source))
        self._collections = [database[name] for name in source.collections]
        # Names of connections have no dots and those of databases no slashes, so each URI means one collection.
        connection = f"{source.connection.lower()}/" if source.connection else ""
        self._uris = [f"mongodb:{connection}{source.database}.{name}" for name in source.collections]
        self._limit_reached: _Position | None = None

    @property
    def total(self) -> int:
        """Documents to read; 0 while unknown."""
        if self._previous.digest:
            return 0
        return min(self._snapshot.documents, self._source.limit or self._snapshot.documents)

    @property
    def no_documents(self) -> str:
        """Error message for an export without any document."""
        if self._previous.digest:
            return "no document is newer than the corpus of since_corpus_uri: export again when there are some"
        return "the documents of the snapshot have gone: call DescribeSource again, or leave `snapshot` out"

    @property
    def fingerprint(self) -> str:
        """The token of the snapshot."""
        return self._snapshot.token()

    @property
    def properties(self) -> Mapping[str, str]:
        """`source`: database and collections; `reached`: a snapshot of what was read, where a limit ended reading."""
        source, position = self._source, self._limit_reached
        where = f"MongoDB {source.connection}".strip()
        origin = {SOURCE_PROPERTY: f"{where}: {', '.join(f'{source.database}.{name}' for name in source.collections)}"}
        if position is None:
            return origin
        states = []
        for index, state in enumerate(self._snapshot.collections):
            if index < position.collection:
                states.append(state)
                continue
            is_last = index == position.collection
            read = (*state.max_ids[: position.bracket], position.identifier) if is_last else ()
            before = tuple(self._previous.max_ids[index].values())
            documents = self._previous.documents[index] + position.counts[index]
            states.append(CollectionState(documents, read if is_last else before))
        return {**origin, REACHED_PROPERTY: Snapshot(self._snapshot.source_digest, tuple(states)).token()}

    @property
    def summary(self) -> Mapping[str, Any]:
        """Nothing: the counts are complete."""
        return {}

    def batches(self, resume_after: str | None) -> Iterator[Batch]:
        """Yields the documents from the first one, or from the one after a resume token.

        Raises:
            Unavailable: The server is gone for good. Others as `connect`.
            FailedPrecondition: The server does not keep the order of `_id`.
            DataLoss: The server sent invalid BSON, or not all documents of the snapshot.
        """
        position = _Position.parse(resume_after) if resume_after is not None else None
        counts = list(position.counts) if position else [0] * len(self._collections)
        if position and sum(counts) == self._source.limit:
            self._limit_reached = position
        else:
            yield from self._batches(position, counts)
        self._require_complete(counts)

    def _batches(self, resume: _Position | None, counts: list[int]) -> Iterator[Batch]:
        """Yields the documents up to the limit; adds them to the counts of their collections."""
        limit = self._source.limit
        current, order = None, None
        # Decodes here, so that the threads that read request the next batch at once.
        for id_range, raw in prefetch(self._ranges(resume), self._read_range, self._readers, _BATCHES_AHEAD):
            if order is None or id_range is not current:
                current, order = id_range, OrderCheck(id_range, self._collections[id_range.collection])
            documents = decode_documents(raw, self._rule)
            if not documents.ids:
                continue
            order.check(documents.ids)
            if limit:
                documents = documents.first(limit - sum(counts))
            counts[id_range.collection] += len(documents.ids)
            yield self._batch(id_range, documents, tuple(counts))
            if sum(counts) == limit:
                self._limit_reached = _Position(id_range.collection, id_range.bracket, documents.ids[-1], tuple(counts))
                return

    def _batch(self, id_range: IdRange, documents: Documents, counts: Sequence[int]) -> Batch:
        def resume_token(position: int) -> str:
            until = list(counts)
            until[id_range.collection] -= len(documents.ids) - position - 1
            return _Position(id_range.collection, id_range.bracket, documents.ids[position], until).token()

        source = self._uris[id_range.collection]
        return Batch(documents.id_texts, source, documents.texts, documents.rejects, resume_token, sum(counts))

    def _ranges(self, resume: _Position | None) -> Iterator[IdRange]:
        """Yields what is to be read, in order."""
        first = (resume.collection, resume.bracket) if resume else (0, 0)
        for index, state in enumerate(self._snapshot.collections):
            for bracket, max_id in enumerate(state.max_ids):
                if (index, bracket) < first:
                    continue
                if resume and (index, bracket) == first:
                    begin, has_begun = resume.identifier, True
                else:
                    begin, has_begun = self._previous.max_id(index, max_id)
                if has_begun and order_key(begin) == order_key(max_id):
                    continue
                whole = IdRange(index, bracket, begin, max_id)
                # Most limits are small: what is read beyond one is read in vain.
                if self._readers == 1 or self._source.limit:
                    yield whole
                else:
                    yield from cut_range(whole, state.documents, self._collections[index])

    def _read_range(self, id_range: IdRange) -> Iterator[tuple[IdRange, bytes]]:
        """Yields raw batches of a range, by queries of which each continues after the last document of the one before.

        Runs on a thread of `prefetch`.
        """
        after, failures = id_range.after, 0
        while after is None or order_key(after) != order_key(id_range.last):
            raw = b""
            failure: PyMongoError | None = None
            try:
                for batch in self._find(id_range, after):
                    if batch:
                        raw, failures = batch, 0
                        yield id_range, batch
            except PyMongoError as error:
                failures += 1
                if not is_transient(error) or failures >= MAX_CONSECUTIVE_FAILURES:
                    raise
                failure = error
            if raw:
                after = last_document(raw)["_id"]
                if is_alone(id_range.last):
                    return
            if failure is not None:
                self._pause(pause_seconds(failures))
            elif not raw:
                return

    def _find(self, id_range: IdRange, after: Any) -> Iterator[bytes]:
        found = self._collections[id_range.collection].find_raw_batches(
            narrowed(self._query, up_to(id_range.last, after)),
            self._projection,
            sort=[("_id", ASCENDING)],
            batch_size=_BATCH_DOCUMENTS,
        )
        with found:
            yield from found

    def _require_complete(self, counts: Sequence[int]) -> None:
        """Raises IncompleteExport when a document of the snapshot was not read."""
        end = self._limit_reached
        for index, collection in enumerate(self._collections):
            if end and index > end.collection:
                return
            whole = self._completeness(index, collection)
            if end and index == end.collection:
                whole.check_until(counts[index], end.bracket, end.identifier)
            else:
                whole.check(counts[index])

    def _completeness(self, index: int, collection: MongoCollection) -> Completeness:
        state, previous = self._snapshot.collections[index], self._previous
        return Completeness(
            collection, self._query, state, previous.max_ids[index], previous.documents[index], self._pause
        )
