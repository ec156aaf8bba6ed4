"""Ranges of `_id`: cuts a snapshot into ranges that can be read at the same time, and checks the order within each.

Where a range ends affects neither what is read nor its order, so the cuts may be random.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pymongo import ASCENDING
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import OperationFailure

from gpt2_exporter.mongo.identifiers import CODEC, bracket_of, order_key, out_of_order, to_json, up_to
from gpt2_exporter.mongo.plain_documents import ObjectIds

_DIGEST_BYTES = 16
_DOCUMENTS_PER_RANGE = 4000
_MAX_RANGES = 4000
# A server finds a sample fast by jumping into the index, but only where it is less than a twentieth of the collection.
_MIN_DOCUMENTS_TO_CUT = 40_000


@dataclass(frozen=True, slots=True)
class IdRange:
    """Ids of one bracket of one collection."""

    collection: int
    """Index among the collections of the source."""
    bracket: int
    """Index among the brackets of types that the snapshot has of the collection."""
    after: Any
    """The last id before the range; None where the range begins with the bracket."""
    last: Any
    """The last id of the range."""


def cut_range(whole: IdRange, documents: int, collection: MongoCollection) -> Iterator[IdRange]:
    """Yields a range in parts of about 4,000 documents, cut at a random sample of ids; whole where it is small.

    Args:
        whole: The range.
        documents: Approximate number of documents in the collection.
        collection: The collection.
    """
    after = whole.after
    if documents >= _MIN_DOCUMENTS_TO_CUT and _jumps_into_index(collection):
        for identifier in _sample(whole, min(documents // _DOCUMENTS_PER_RANGE, _MAX_RANGES), collection):
            if identifier not in (after, whole.last):
                yield replace(whole, after=after, last=identifier)
                after = identifier
    yield replace(whole, after=after)


def _jumps_into_index(collection: MongoCollection) -> bool:
    """Whether the server is MongoDB itself: others that speak its protocol read a whole collection to take a sample."""
    return "storageEngines" in collection.database.client.server_info()


def _sample(whole: IdRange, size: int, collection: MongoCollection) -> list[Any]:
    """Returns ids of the range in the order of the server; none where the server cannot take a sample."""
    pipeline: list[dict[str, Any]] = [
        {"$sample": {"size": size}},
        {"$match": {"_id": up_to(whole.last, whole.after)}},
        {"$sort": {"_id": ASCENDING}},
        {"$project": {"_id": 1}},
    ]
    decoding = collection.with_options(codec_options=CODEC)
    try:
        return [document["_id"] for document in decoding.aggregate(pipeline)]
    except OperationFailure:
        return []


class OrderCheck:
    """Checks that the ids of a range are strictly ascending: so that none occurs twice, or from beyond the range.

    Memory is flat, except for objects and for strings under a collation: of such ids it only checks the uniqueness.

    Args:
        id_range: The range.
        collection: Its collection.
    """

    def __init__(self, id_range: IdRange, collection: MongoCollection) -> None:
        self._name = collection.full_name
        self._bracket = bracket_of(id_range.last)
        # The server may sort these in another order than `order_key`.
        self._by_digest = self._bracket == "object" or (self._bracket == "string" and _has_collation(collection))
        self._seen: set[bytes] = set()
        self._last = id_range.last
        self._key = None if id_range.after is None else order_key(id_range.after)

    def check(self, ids: Sequence[Any]) -> None:
        """Checks the next ids. Raises FailedPrecondition when they are out of order or out of the range."""
        if isinstance(ids, ObjectIds) and self._bracket == "object id":
            if not ids.increase(self._key, self._last):
                raise out_of_order(self._name)
            self._key = ids[-1]
            return
        for identifier in ids:
            if bracket_of(identifier) != self._bracket or not self._is_next(identifier):
                raise out_of_order(self._name)

    def _is_next(self, identifier: Any) -> bool:
        if self._by_digest:
            digest = hashlib.blake2b(to_json(identifier).encode(), digest_size=_DIGEST_BYTES).digest()
            is_new = digest not in self._seen
            self._seen.add(digest)
            return is_new
        before, self._key = self._key, order_key(identifier)
        return bool((before is None or before < self._key) and self._key <= order_key(self._last))


def _has_collation(collection: MongoCollection) -> bool:
    try:
        return "collation" in collection.options()
    except OperationFailure:
        # The user may not list collections; most have no collation.
        return False
