"""Reads the documents of a snapshot in the order of `_id`, without losing one when a cursor or a server is lost.

No cursor is relied on to live long: whenever one ends, well or badly, reading goes on after the last `_id` seen, until
a query finds nothing more. So sessions that expire, elections and restarts of servers cost time only.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bson
from bson.errors import InvalidBSON
from pymongo import ASCENDING
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure, PyMongoError

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import DataLoss
from gpt2_exporter.corpus.record import BROKEN_TEXT, Record, unusable_reason
from gpt2_exporter.mongo.connection import Server
from gpt2_exporter.mongo.filter import parse_filter
from gpt2_exporter.mongo.identifier import CODEC, from_json, id_text, is_before, out_of_order, to_json, up_to
from gpt2_exporter.mongo.snapshot import DEFAULT_TEXT_FIELD, Snapshot, narrowed

_BATCH_DOCUMENTS = 1000
_FAILURES_IN_A_ROW = 5
_FIRST_PAUSE_SECONDS = 0.2
# CursorNotFound, QueryPlanKilled, NoSuchSession, CursorKilled, Interrupted, InterruptedAtShutdown.
_LOST_CURSOR_CODES = frozenset({43, 175, 206, 237, 11601, 11600})
_LENIENT = CODEC.with_options(unicode_decode_error_handler="surrogateescape")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document stands: its collection, its bracket of ids, and its `_id`."""

    collection: int
    bracket: int
    identifier: Any


class MongoDocuments:
    """The documents of a snapshot, as records.

    Args:
        server: Where they are.
        source: What to read of them.
        snapshot: Which documents.
        pause: Waits a number of seconds before another attempt to reach the server.
    """

    unit = "documents"

    def __init__(
        self,
        server: Server,
        source: pb.MongoSource,
        snapshot: Snapshot,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._server = server
        self._source = source
        self._snapshot = snapshot
        self._pause = pause
        self._query = parse_filter(source.filter)
        self._path = source.text_field or DEFAULT_TEXT_FIELD

    @property
    def total(self) -> int:
        """Documents that match."""
        return self._snapshot.documents

    @property
    def fingerprint(self) -> str:
        """Names what is read."""
        return self._snapshot.token()

    def done(self, place: Place, read: int) -> float:  # noqa: ARG002 - other sources count by place
        """Units done after the record at a place, the `read`th."""
        return read

    def encode_place(self, place: Place) -> str:
        """Writes a place, to be given to `records` in another process."""
        return json.dumps([place.collection, place.bracket, to_json(place.identifier)])

    def records(self, after: str | None) -> Iterator[Record]:
        """Yields the records, from the first one or from the one after a place.

        Raises:
            Unavailable: The server is gone for good. Others as `connect`.
            DataLoss: The server sent what is no BSON.
        """
        first, bracket, start = (0, 0, None) if after is None else _decode_place(after)
        for index, state in enumerate(self._snapshot.collections):
            for part, greatest in enumerate(state.greatest):
                if (index, part) < (first, bracket):
                    continue
                yield from self._bracket(index, part, greatest, start if (index, part) == (first, bracket) else None)

    def _bracket(self, collection: int, bracket: int, greatest: Any, after: Any) -> Iterator[Record]:
        """Yields the records of one bracket of one collection, in queries that each go on where the last one ended."""
        source = f"mongodb:{self._source.database}.{self._source.collections[collection]}"
        failures = 0
        while after is None or after != greatest:
            before = after
            try:
                for document, broken in self._documents(collection, up_to(greatest, after)):
                    if is_before(document["_id"], after):
                        raise out_of_order(source)
                    after, failures = document["_id"], 0
                    text, reason = read_text(document, self._path, broken)
                    yield Record(id_text(after), source, text, reason, Place(collection, bracket, after))
            except PyMongoError as error:
                failures += 1
                if not _is_passing(error) or failures >= _FAILURES_IN_A_ROW:
                    raise
                self._pause(_FIRST_PAUSE_SECONDS * 2**failures)
                continue
            if after is before:
                return

    def _documents(self, collection: int, id_range: Any) -> Iterator[tuple[dict[str, Any], bool]]:
        name = self._source.collections[collection]
        found = self._server.client[self._source.database][name].find_raw_batches(
            narrowed(self._query, id_range),
            projection(self._path),
            sort=[("_id", ASCENDING)],
            batch_size=_BATCH_DOCUMENTS,
        )
        with found:
            for batch in found:
                yield from decode_batch(batch)


def _decode_place(text: str) -> tuple[int, int, Any]:
    collection, bracket, identifier = json.loads(text)
    return collection, bracket, from_json(identifier)


def projection(path: str) -> dict[str, int]:
    """Asks for `_id` and the text alone."""
    return {"_id": 1} if path.split(".")[0] == "_id" else {"_id": 1, path: 1}


def read_text(document: dict[str, Any], path: str, broken: bool) -> tuple[str, str]:
    """Takes the text out of a document.

    Args:
        document: The document.
        path: Path of the text in it.
        broken: Whether a string in it was no UTF-8.

    Returns:
        The text and an empty reason, or an empty text and the reason why it is unusable.
    """
    if broken:
        return "", BROKEN_TEXT
    # Some servers of this protocol answer a dotted projection with a field of the whole dotted name.
    value = document[path] if path in document else _follow(document, path.split("."))
    reason = unusable_reason(value)
    return ("", reason) if reason else (value, "")


def decode_batch(batch: bytes) -> Iterator[tuple[dict[str, Any], bool]]:
    """Decodes the documents of a raw batch, each with whether a string in it is broken UTF-8.

    Raises:
        DataLoss: The bytes are no BSON.
    """
    try:
        documents = bson.decode_all(batch, CODEC)
    except InvalidBSON:
        yield from _decode_one_by_one(batch)
    else:
        yield from ((document, False) for document in documents)


def _decode_one_by_one(batch: bytes) -> Iterator[tuple[dict[str, Any], bool]]:
    begin = 0
    while begin < len(batch):
        size = int.from_bytes(batch[begin : begin + 4], "little")
        raw = batch[begin : begin + size]
        begin += max(size, 5)
        try:
            yield bson.decode(raw, CODEC), False
        except InvalidBSON:
            yield _decode_broken(raw), True


def _decode_broken(raw: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = bson.decode(raw, _LENIENT)
        id_text(document["_id"]).encode()
    except InvalidBSON as error:
        raise DataLoss(f"MongoDB sent a document that is no BSON ({error}): validate the collection") from error
    except UnicodeEncodeError as error:
        # Reading could not go on after it: the query that says so cannot be written.
        raise DataLoss(f"a document's _id is broken UTF-8 ({document['_id']!r}): give it another _id") from error
    return document


def _follow(value: Any, parts: list[str]) -> Any:
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return ...
        value = value[part]
    return value


def _is_passing(error: PyMongoError) -> bool:
    """Whether another attempt can go well."""
    if isinstance(error, AutoReconnect | CursorNotFound):
        return True
    return isinstance(error, OperationFailure) and error.code in _LOST_CURSOR_CODES
