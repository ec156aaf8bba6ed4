"""Reads the documents of a snapshot in the order of `_id`, without losing one when a cursor or a server is lost.

No cursor is relied on to live long: whenever one ends, well or badly, reading goes on after the last `_id` seen, until
a query finds nothing more. So sessions that expire, elections and restarts of servers cost time only.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
from pymongo import ASCENDING
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import PyMongoError

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus.record import Batch
from gpt2_exporter.mongo.completeness import Completeness
from gpt2_exporter.mongo.connection import Server
from gpt2_exporter.mongo.decoding import decode_batch, last_document
from gpt2_exporter.mongo.distinct import DistinctIds
from gpt2_exporter.mongo.document_id import id_text
from gpt2_exporter.mongo.extended_json import parse_filter, parse_projection
from gpt2_exporter.mongo.identifier import from_json, is_alone, order_key, to_json, up_to
from gpt2_exporter.mongo.plain_documents import read_plain
from gpt2_exporter.mongo.prefetching import prefetched
from gpt2_exporter.mongo.ranges import IdRange, cut
from gpt2_exporter.mongo.retrying import MAX_CONSECUTIVE_FAILURES, is_transient, pause_seconds
from gpt2_exporter.mongo.since import REACHED, Since
from gpt2_exporter.mongo.snapshot import CollectionState, Snapshot, narrowed, read_preference
from gpt2_exporter.mongo.text import TextRule

_BATCH_DOCUMENTS = 1000
_BATCHES_AHEAD = 4

_Strings: TypeAlias = Sequence[str] | pa.StringArray
_Read: TypeAlias = tuple[Sequence[Any], _Strings, _Strings, dict[int, str]]
"""Documents: their `_id`s, those as text, their texts, and by position why they are unusable."""


class MongoDocuments:
    """The documents of a snapshot.

    Args:
        server: Where they are.
        source: What to read of them.
        snapshot: Which documents.
        since: Where to begin.
        readers: Ranges that are read at once, from 1.
        pause: Waits a number of seconds before another attempt to reach the server.
    """

    unit = "documents"

    def __init__(
        self,
        server: Server,
        source: pb.MongoSource,
        snapshot: Snapshot,
        since: Since | None = None,
        readers: int = 1,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._server = server
        self._source = source
        self._snapshot = snapshot
        self._since = since or Since.beginning(source)
        self._readers = readers
        self._pause = pause
        self._query = parse_filter(source.filter)
        self._rule = TextRule.of(source)
        self._projection = parse_projection(source.projection, self._rule.paths)
        self._cut_off: tuple[int, int, Any] | None = None
        self._counts: Sequence[int] = ()

    @property
    def nothing(self) -> str:
        """What to say where nothing is read."""
        if self._since.digest:
            return "no document is newer than the corpus of since_corpus_uri: export again when there are some"
        return "the documents of the snapshot have gone: call DescribeSource again, or leave `snapshot` out"

    @property
    def total(self) -> int:
        """Documents that are to be read; 0 while unknown."""
        if self._since.digest:
            return 0
        return min(self._snapshot.documents, self._source.limit or self._snapshot.documents)

    @property
    def fingerprint(self) -> str:
        """Names what is read."""
        return self._snapshot.token()

    @property
    def properties(self) -> Mapping[str, str]:
        """`source`: database and collections; and how far reading came, where it was not to the end of the snapshot."""
        source = self._source
        where = f"MongoDB {source.connection}".strip()
        named = {"source": f"{where}: {', '.join(f'{source.database}.{name}' for name in source.collections)}"}
        if self._cut_off is None:
            return named
        collection, bracket, identifier = self._cut_off
        states = []
        for index, state in enumerate(self._snapshot.collections):
            read = (*state.greatest[:bracket], identifier) if index == collection else state.greatest
            before = tuple(self._since.collections[index].values())
            documents = self._since.documents[index] + self._counts[index] if index >= collection else state.documents
            states.append(CollectionState(documents, read if index <= collection else before))
        return {**named, REACHED: Snapshot(self._snapshot.source_digest, tuple(states)).token()}

    @property
    def summary(self) -> Mapping[str, Any]:
        """Nothing: the counts say it all."""
        return {}

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yields the documents, from the first one or from the one after a place.

        Raises:
            Unavailable: The server is gone for good. Others as `connect`.
            FailedPrecondition: The server does not keep to the order of `_id`.
            DataLoss: The server sent what is no BSON, or not all documents of the snapshot.
        """
        counts = [0] * len(self._source.collections)
        if after is not None:
            *cut_off, counts = _decode_place(after)
            if sum(counts) == self._source.limit:
                self._cut_off = (*cut_off,)
        if self._cut_off is None:
            yield from self._batches(after, counts)
        self._counts = counts
        self._require_all(counts)

    def _batches(self, after: str | None, counts: list[int]) -> Iterator[Batch]:
        """Yields the documents after a place up to the limit; counts those of each collection."""
        limit = self._source.limit
        current, distinct = None, None
        # Decoding is done here, so that the threads that read ask the server for the next batch at once.
        for id_range, raw in prefetched(self._ranges(after), self._read, self._readers, _BATCHES_AHEAD):
            if distinct is None or id_range is not current:
                current, distinct = id_range, DistinctIds(id_range, self._collection(id_range.collection))
            ids, names, texts, rejects = self._decode(raw)
            if not ids:
                continue
            distinct.check(ids)
            kept = min(limit - sum(counts) if limit else len(ids), len(ids))
            counts[id_range.collection] += kept
            yield self._batch(id_range, ids[:kept], names[:kept], texts[:kept], rejects, tuple(counts))
            if sum(counts) == limit:
                self._cut_off = (id_range.collection, id_range.bracket, ids[kept - 1])
                return

    def _require_all(self, counts: Sequence[int]) -> None:
        """Raises Incomplete where a document of the snapshot was not read."""
        for index, (state, read) in enumerate(zip(self._snapshot.collections, counts, strict=True)):
            since = self._since
            whole = Completeness(
                self._collection(index),
                self._query,
                state,
                since.collections[index],
                since.documents[index],
                self._pause,
            )
            if self._cut_off is None or index < self._cut_off[0]:
                whole.check(read)
            elif index == self._cut_off[0]:
                whole.check_part(read, *self._cut_off[1:])

    def _batch(
        self,
        id_range: IdRange,
        ids: Sequence[Any],
        names: _Strings,
        texts: _Strings,
        rejects: dict[int, str],
        counts: tuple[int, ...],
    ) -> Batch:
        def place(position: int) -> str:
            until = list(counts)
            until[id_range.collection] -= len(ids) - position - 1
            return json.dumps([id_range.collection, id_range.bracket, to_json(ids[position]), until])

        kept = {position: reason for position, reason in rejects.items() if position < len(ids)}
        return Batch(names, self._name(id_range), texts, kept, place, sum(counts))

    def _ranges(self, after: str | None) -> Iterator[IdRange]:
        collection, bracket, start, _ = (0, 0, None, []) if after is None else _decode_place(after)
        for index, state in enumerate(self._snapshot.collections):
            for part, greatest in enumerate(state.greatest):
                if (index, part) < (collection, bracket):
                    continue
                if after is not None and (index, part) == (collection, bracket):
                    begin, begun = start, True
                else:
                    begin, begun = self._since.after(index, greatest)
                if begun and order_key(begin) == order_key(greatest):
                    continue
                whole = IdRange(index, part, begin, greatest)
                # A limit is mostly small: what is read ahead of it would be read for nothing.
                if self._readers == 1 or self._source.limit:
                    yield whole
                else:
                    yield from cut(whole, state.documents, self._collection(index))

    def _read(self, id_range: IdRange) -> Iterator[tuple[IdRange, bytes]]:
        """Reads a range, in queries that each go on where the last one ended."""
        after, failures = id_range.after, 0
        while after is None or order_key(after) != order_key(id_range.last):
            raw = b""
            failure: PyMongoError | None = None
            try:
                for batch in self._raw_batches(id_range, after):
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

    def _raw_batches(self, id_range: IdRange, after: Any) -> Iterator[bytes]:
        found = self._collection(id_range.collection).find_raw_batches(
            narrowed(self._query, up_to(id_range.last, after)),
            self._projection,
            sort=[("_id", ASCENDING)],
            batch_size=_BATCH_DOCUMENTS,
        )
        with found:
            yield from found

    def _decode(self, batch: bytes) -> _Read:
        plain = read_plain(batch, self._rule.plain_field) if self._rule.plain_field else None
        if plain is not None:
            return *plain, {}
        ids: list[Any] = []
        texts: list[str] = []
        rejects: dict[int, str] = {}
        for document, broken in decode_batch(batch):
            text, reason = ("", broken) if broken else self._rule.read(document)
            if reason:
                rejects[len(ids)] = reason
            ids.append(document["_id"])
            texts.append(text)
        return ids, [id_text(identifier) for identifier in ids], texts, rejects

    def _collection(self, index: int) -> MongoCollection:
        database = self._server.client.get_database(
            self._source.database, read_preference=read_preference(self._source)
        )
        return database[self._source.collections[index]]

    def _name(self, id_range: IdRange) -> str:
        # Names of connections hold no dots and those of databases no slashes, so each name means one collection.
        connection = f"{self._source.connection.lower()}/" if self._source.connection else ""
        return f"mongodb:{connection}{self._source.database}.{self._source.collections[id_range.collection]}"


def _decode_place(text: str) -> tuple[int, int, Any, list[int]]:
    """Of the last document: collection, bracket and id; and the documents read of each collection until then."""
    collection, bracket, identifier, counts = json.loads(text)
    return collection, bracket, from_json(identifier), counts
