"""A snapshot: which documents of a source there are at one moment, small enough to be passed about as a string.

It holds the number of matching documents and the greatest `_id` of each collection. An export that is given one reads
no document with a greater `_id`. As ids made by MongoDB's drivers grow with time, later documents stay out; ids that an
application makes in another order can let one in, which the changed number of documents then shows.
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
from gpt2_exporter.mongo.identifier import BRACKET_RANGES, CODEC, bracket_of, from_json, out_of_order, to_json
from gpt2_exporter.mongo.text import TextRule

_VERSION = 1
# Of the ids past the greatest one: servers may answer with some of other brackets.
_LOOKED_AT = 100

Query = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CollectionState:
    """What one collection holds of the source."""

    documents: int
    """Documents that match; without a filter, as many as the server keeps count of, which a crash of it can put off."""
    greatest: tuple[Any, ...]
    """Greatest matching `_id` of each bracket of types that occurs, in MongoDB's order; mostly one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a source held at one moment."""

    source_digest: str
    """Which source it is of."""
    collections: tuple[CollectionState, ...]
    """In the order of the source's collections."""

    @property
    def documents(self) -> int:
        """Documents that match, altogether."""
        return sum(state.documents for state in self.collections)

    def token(self) -> str:
        """The snapshot as an opaque string: the same for the same state."""
        states = [[state.documents, list(state.greatest)] for state in self.collections]
        return base64.urlsafe_b64encode(to_json([_VERSION, self.source_digest, states]).encode()).decode()

    @classmethod
    def parse(cls, token: str, source: pb.MongoSource) -> "Snapshot":
        """Reads a token.

        Raises:
            InvalidRequest: It is none, or one of another source.
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
    """Looks at what the source holds now. Errors as `connect`."""
    query = parse_filter(source.filter)
    database = server.client.get_database(source.database, read_preference=read_preference(source))
    states = [_look_at(database.get_collection(name, codec_options=CODEC), query) for name in source.collections]
    return Snapshot(source_digest(source), tuple(states))


def source_digest(source: pb.MongoSource) -> str:
    """Names a source: the same for requests that mean the same.

    How many documents are read of it, and from which member of a replica set, makes no other source.
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
    """Which member of a replica set is read, as the driver has it."""
    preferences = {
        pb.READ_PREFERENCE_PRIMARY_PREFERRED: ReadPreference.PRIMARY_PREFERRED,
        pb.READ_PREFERENCE_SECONDARY: ReadPreference.SECONDARY,
        pb.READ_PREFERENCE_SECONDARY_PREFERRED: ReadPreference.SECONDARY_PREFERRED,
        pb.READ_PREFERENCE_NEAREST: ReadPreference.NEAREST,
    }
    return preferences.get(source.read_preference, ReadPreference.PRIMARY)


def narrowed(query: Query, id_range: Mapping[str, Any] | Any) -> Query:
    """The query, narrowed to ids in a range; the two stand side by side, as the query may speak of `_id` itself."""
    return {"$and": [query, {"_id": id_range}]} if query else {"_id": id_range}


def _look_at(collection: MongoCollection, query: Query) -> CollectionState:
    # Without a query the server has the number at hand, however large the collection is.
    documents = collection.count_documents(query) if query else collection.estimated_document_count()
    least = _outermost_id(collection, query, ASCENDING)
    greatest = _outermost_id(collection, query, DESCENDING)
    if not least or not greatest:
        if collection.count_documents(query) and not _outermost_id(collection, query, DESCENDING):
            raise out_of_order(collection.full_name)
        return CollectionState(0, ())
    outermost = (bracket_of(least[0]), bracket_of(greatest[0]))
    every: list[Any] = []
    # Every bracket is looked for: servers that are not MongoDB itself may sort one in between the values of another.
    for bracket, condition in BRACKET_RANGES.items():
        if bracket == outermost[1]:
            part, found = query, greatest
        elif bracket == "nan":
            # It is the least number; not every server can be asked for it.
            part = narrowed(query, {"$type": "number"})
            found = _outermost_id(collection, part, ASCENDING)
        elif bracket in outermost or bracket not in ("least", "greatest"):
            part = narrowed(query, condition)
            found = _outermost_id(collection, part, DESCENDING)
        else:
            continue
        # They may compare values of several brackets, too.
        if found and bracket_of(found[0]) == bracket:
            _require_order(collection, part, found)
            every += found
    return CollectionState(documents, tuple(every))


def _require_order(collection: MongoCollection, query: Query, greatest: tuple[Any, ...]) -> None:
    """Checks that nothing of its bracket lies beyond the greatest `_id`, as on servers that sort values as text."""
    bracket = bracket_of(greatest[0])
    if "$gte" not in BRACKET_RANGES[bracket]:
        return
    found = collection.find(narrowed(query, {"$gt": greatest[0]}), {"_id": 1}).limit(_LOOKED_AT)
    is_beyond = any(bracket_of(document["_id"]) == bracket for document in found)
    # What was added between two looks is greater too, but then so is the greatest at a second look.
    if is_beyond and _outermost_id(collection, query, DESCENDING) == greatest:
        raise out_of_order(collection.full_name)


def _outermost_id(collection: MongoCollection, query: Query, direction: int) -> tuple[Any, ...]:
    """The first `_id` in a direction, alone in a tuple; empty when nothing matches."""
    found = list(collection.find(query, {"_id": 1}).sort("_id", direction).limit(1))
    if found and "_id" not in found[0]:
        raise FailedPrecondition(
            f"the documents of {collection.full_name} have no _id (a view?), by which they are read: add it"
        )
    return tuple(document["_id"] for document in found)


def _wrong(description: str) -> InvalidRequest:
    return InvalidRequest([("snapshot", f"{description}: call DescribeSource for this source again")])
