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
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure, PyMongoError

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus.record import Batch
from gpt2_exporter.mongo.connection import Server
from gpt2_exporter.mongo.decoding import decode_batch, last_document
from gpt2_exporter.mongo.extended_json import parse_filter, parse_projection
from gpt2_exporter.mongo.identifier import from_json, id_text, is_before, out_of_order, to_json, up_to
from gpt2_exporter.mongo.plain_documents import read_plain
from gpt2_exporter.mongo.prefetching import prefetched
from gpt2_exporter.mongo.ranges import IdRange, cut
from gpt2_exporter.mongo.since import REACHED, Since
from gpt2_exporter.mongo.snapshot import CollectionState, Snapshot, narrowed, read_preference
from gpt2_exporter.mongo.text import TextRule

_BATCH_DOCUMENTS = 1000
_BATCHES_AHEAD = 4
_FAILURES_IN_A_ROW = 5
_FIRST_PAUSE_SECONDS = 0.2
# CursorNotFound, QueryPlanKilled, NoSuchSession, CursorKilled, Interrupted, InterruptedAtShutdown.
_LOST_CURSOR_CODES = frozenset({43, 175, 206, 237, 11601, 11600})

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
            states.append(CollectionState(state.documents, read if index <= collection else before))
        return {**named, REACHED: Snapshot(self._snapshot.source_digest, tuple(states)).token()}

    @property
    def summary(self) -> Mapping[str, Any]:
        """Nothing: the counts say it all."""
        return {}

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yields the documents, from the first one or from the one after a place.

        Raises:
            Unavailable: The server is gone for good. Others as `connect`.
            DataLoss: The server sent what is no BSON.
        """
        collection, bracket, start, read = (0, 0, None, 0) if after is None else _decode_place(after)
        if read and read == self._source.limit:
            self._cut_off = (collection, bracket, start)
            return
        previous: tuple[IdRange | None, Any] = (None, None)
        # Decoding is done here, so that the threads that read ask the server for the next batch at once.
        for id_range, raw in prefetched(self._ranges(after), self._read, self._readers, _BATCHES_AHEAD):
            before = previous[1] if previous[0] is id_range else id_range.after
            ids, names, texts, rejects = self._decode(id_range, raw, before)
            if not ids:
                continue
            previous = (id_range, ids[-1])
            room = self._source.limit - read if self._source.limit else len(ids)
            kept = min(room, len(ids))
            read += kept
            yield self._batch(id_range, ids[:kept], names[:kept], texts[:kept], rejects, read)
            if read == self._source.limit:
                self._cut_off = (id_range.collection, id_range.bracket, ids[kept - 1])
                return

    def _batch(
        self,
        id_range: IdRange,
        ids: Sequence[Any],
        names: _Strings,
        texts: _Strings,
        rejects: dict[int, str],
        read: int,
    ) -> Batch:
        def place(position: int) -> str:
            identifier = to_json(ids[position])
            before = read - len(ids)
            return json.dumps([id_range.collection, id_range.bracket, identifier, before + position + 1])

        kept = {position: reason for position, reason in rejects.items() if position < len(ids)}
        return Batch(names, self._name(id_range), texts, kept, place, read)

    def _ranges(self, after: str | None) -> Iterator[IdRange]:
        collection, bracket, start, _ = (0, 0, None, 0) if after is None else _decode_place(after)
        for index, state in enumerate(self._snapshot.collections):
            for part, greatest in enumerate(state.greatest):
                if (index, part) < (collection, bracket):
                    continue
                if after is not None and (index, part) == (collection, bracket):
                    begin, begun = start, True
                else:
                    begin, begun = self._since.after(index, greatest)
                if begun and begin == greatest:
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
        while after is None or after != id_range.last:
            raw = b""
            failure: PyMongoError | None = None
            try:
                for batch in self._raw_batches(id_range, after):
                    if batch:
                        raw, failures = batch, 0
                        yield id_range, batch
            except PyMongoError as error:
                failures += 1
                if not _is_passing(error) or failures >= _FAILURES_IN_A_ROW:
                    raise
                failure = error
            if raw:
                after = last_document(raw)["_id"]
            if failure is not None:
                self._pause(_FIRST_PAUSE_SECONDS * 2**failures)
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

    def _decode(self, id_range: IdRange, batch: bytes, after: Any) -> _Read:
        plain = read_plain(batch, self._rule.plain_field) if self._rule.plain_field else None
        if plain is not None:
            return *plain, {}
        ids: list[Any] = []
        texts: list[str] = []
        rejects: dict[int, str] = {}
        for document, broken in decode_batch(batch):
            identifier = document["_id"]
            if is_before(identifier, after):
                raise out_of_order(self._name(id_range))
            text, reason = ("", broken) if broken else self._rule.read(document)
            if reason:
                rejects[len(ids)] = reason
            after = identifier
            ids.append(identifier)
            texts.append(text)
        return ids, [id_text(identifier) for identifier in ids], texts, rejects

    def _collection(self, index: int) -> MongoCollection:
        database = self._server.client.get_database(
            self._source.database, read_preference=read_preference(self._source)
        )
        return database[self._source.collections[index]]

    def _name(self, id_range: IdRange) -> str:
        return f"mongodb:{self._source.database}.{self._source.collections[id_range.collection]}"


def _decode_place(text: str) -> tuple[int, int, Any, int]:
    collection, bracket, identifier, read = json.loads(text)
    return collection, bracket, from_json(identifier), read


def _is_passing(error: PyMongoError) -> bool:
    """Whether another attempt can go well."""
    if isinstance(error, AutoReconnect | CursorNotFound):
        return True
    return isinstance(error, OperationFailure) and error.code in _LOST_CURSOR_CODES
