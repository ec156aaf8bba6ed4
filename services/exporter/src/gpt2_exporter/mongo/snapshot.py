"""A snapshot: which documents a source has at one moment, as a token small enough for a request.

It holds the number of matching documents and the greatest `_id` of each collection. An export of a snapshot reads no
document with a greater `_id`. The ids of MongoDB's drivers ascend with time, so later documents stay out; one with a
smaller id of the application's own can enter, and then changes the number of documents.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bson.errors import BSONError
from pymongo import ASCENDING, DESCENDING, ReadPreference
from pymongo.collection import Collection as MongoCollection

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_exporter.mongo.connection import Server
from gpt2_exporter.mongo.extended_json import parse_filter, parse_projection
from gpt2_exporter.mongo.identifiers import BRACKET_RANGES, CODEC, bracket_of, from_json, out_of_order, to_json
from gpt2_exporter.mongo.text import TextRule

_VERSION = 1
# Of the ids past the greatest one: servers may return some of other brackets.
_MAX_CHECKED_IDS = 100

Query = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CollectionState:
    """The documents of the source in one collection."""

    documents: int
    """Documents that match; without a filter the server's own count, which a crash of the server can falsify."""
    max_ids: tuple[Any, ...]
    """Greatest matching `_id` of each bracket of types that occurs, in MongoDB's order; usually one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The documents of a source at one moment."""

    source_digest: str
    """Digest of the source."""
    collections: tuple[CollectionState, ...]
    """In the order of the source's collections."""

    @property
    def documents(self) -> int:
        """Documents that match, in all collections."""
        return sum(state.documents for state in self.collections)

    def token(self) -> str:
        """The snapshot as an opaque string; equal for equal snapshots."""
        states = [[state.documents, list(state.max_ids)] for state in self.collections]
        return base64.urlsafe_b64encode(to_json([_VERSION, self.source_digest, states]).encode()).decode()

    @classmethod
    def parse(cls, token: str, source: pb.MongoSource) -> "Snapshot":
        """Reads a token.

        Raises:
            InvalidRequest: It is not a token, or one of another source.
        """
        try:
            version, digest, states = from_json(base64.b64decode(token, altchars=b"-_", validate=True).decode())
            collections = tuple(CollectionState(int(documents), tuple(ids)) for documents, ids in states)
        except (ValueError, TypeError, KeyError, BSONError, RecursionError) as error:
            raise _wrong("is not the `snapshot` of a DescribeSourceResponse") from error
        if version != _VERSION:
            raise _wrong(f"was made by another version of the exporter (format {version})")
        if digest != source_digest(source) or len(collections) != len(source.collections):
            raise _wrong(
                "describes another source: connection, database, collections, filter, projection, text_field, "
                "title_field, template or list_separator differ"
            )
        return cls(digest, collections)


def take_snapshot(server: Server, source: pb.MongoSource) -> Snapshot:
    """Returns what the source has now. Errors as `connect`."""
    query = parse_filter(source.filter)
    database = server.client.get_database(source.database, read_preference=read_preference(source))
    states = [_state_of(database.get_collection(name, codec_options=CODEC), query) for name in source.collections]
    return Snapshot(source_digest(source), tuple(states))


def source_digest(source: pb.MongoSource) -> str:
    """Identifies a source: equal for requests that mean the same documents.

    The limit and the member of a replica set to read from are no part of it.
    """
    rule = TextRule.of(source)
    content: list[Any] = [
        source.connection.upper(),
        source.database,
        list(source.collections),
        rule.path,
        to_json(parse_filter(source.filter)),
    ]
    if source.title_field or source.projection:
        content += [rule.title_path, list(rule.parts), to_json(parse_projection(source.projection, rule.paths))]
    if rule.field.separator is not None:
        content.append({"list_separator": rule.field.separator})
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def read_preference(source: pb.MongoSource) -> Any:
    """Returns the driver's read preference for a source."""
    preferences = {
        pb.READ_PREFERENCE_PRIMARY_PREFERRED: ReadPreference.PRIMARY_PREFERRED,
        pb.READ_PREFERENCE_SECONDARY: ReadPreference.SECONDARY,
        pb.READ_PREFERENCE_SECONDARY_PREFERRED: ReadPreference.SECONDARY_PREFERRED,
        pb.READ_PREFERENCE_NEAREST: ReadPreference.NEAREST,
    }
    return preferences.get(source.read_preference, ReadPreference.PRIMARY)


def narrowed(query: Query, id_range: Mapping[str, Any] | Any) -> Query:
    """Returns the query and a condition on `_id`, joined by `$and`, as the query may have one on `_id` itself."""
    return {"$and": [query, {"_id": id_range}]} if query else {"_id": id_range}


def _state_of(collection: MongoCollection, query: Query) -> CollectionState:
    # Without a query the server knows the number, however large the collection is.
    documents = collection.count_documents(query) if query else collection.estimated_document_count()
    lowest = _first_id(collection, query, ASCENDING)
    highest = _first_id(collection, query, DESCENDING)
    if not lowest or not highest:
        if collection.count_documents(query) and not _first_id(collection, query, DESCENDING):
            raise out_of_order(collection.full_name)
        return CollectionState(0, ())
    lowest_bracket, highest_bracket = bracket_of(lowest[0]), bracket_of(highest[0])
    max_ids: list[Any] = []
    # Queries every bracket: servers other than MongoDB itself may sort one between the values of another.
    for bracket, condition in BRACKET_RANGES.items():
        if bracket == highest_bracket:
            part, found = query, highest
        elif bracket == "nan":
            # NaN is the lowest number; not every server supports a query for it.
            part = narrowed(query, {"$type": "number"})
            found = _first_id(collection, part, ASCENDING)
        elif bracket == lowest_bracket or bracket not in ("min key", "max key"):
            part = narrowed(query, condition)
            found = _first_id(collection, part, DESCENDING)
        else:
            continue
        # Such servers may also compare values of several brackets.
        if found and bracket_of(found[0]) == bracket:
            _require_order(collection, part, found)
            max_ids += found
    return CollectionState(documents, tuple(max_ids))


def _require_order(collection: MongoCollection, query: Query, highest: tuple[Any, ...]) -> None:
    """Raises FailedPrecondition when an `_id` of the bracket is past the greatest, as where a server sorts as text."""
    bracket = bracket_of(highest[0])
    if "$gte" not in BRACKET_RANGES[bracket]:
        return
    found = collection.find(narrowed(query, {"$gt": highest[0]}), {"_id": 1}).limit(_MAX_CHECKED_IDS)
    is_beyond = any(bracket_of(document["_id"]) == bracket for document in found)
    # A document added between two queries is beyond it too, but then a new query returns a greater one.
    if is_beyond and _first_id(collection, query, DESCENDING) == highest:
        raise out_of_order(collection.full_name)


def _first_id(collection: MongoCollection, query: Query, direction: int) -> tuple[Any, ...]:
    """Returns the first `_id` in a direction, alone in a tuple; an empty one when nothing matches."""
    found = list(collection.find(query, {"_id": 1}).sort("_id", direction).limit(1))
    if found and "_id" not in found[0]:
        raise FailedPrecondition(
            f"the documents of {collection.full_name} have no _id (a view?), by which they are read: add it"
        )
    return tuple(document["_id"] for document in found)


def _wrong(description: str) -> InvalidRequest:
    return InvalidRequest([("snapshot", f"{description}: call DescribeSource for this source again")])
