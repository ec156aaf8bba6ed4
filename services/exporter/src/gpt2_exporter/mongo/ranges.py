"""Cuts what is to be read of a snapshot into ranges of `_id` that can be read at the same time.

Where a range ends has no effect on what is read, nor on its order; so it may depend on chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pymongo import ASCENDING
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import OperationFailure

from gpt2_exporter.mongo.identifier import CODEC, up_to

_DOCUMENTS_OF_A_RANGE = 4000
_MOST_RANGES = 4000
# A server finds a sample fast by jumping into the index, but only where it is less than a twentieth of the collection.
_LEAST_DOCUMENTS_TO_CUT = 40_000


@dataclass(frozen=True, slots=True)
class IdRange:
    """Ids of one bracket of one collection."""

    collection: int
    """Position among the source's collections."""
    bracket: int
    """Position among the brackets that the snapshot has of the collection."""
    after: Any
    """The id before the first one; None to begin with the bracket."""
    last: Any
    """The greatest id."""


def cut(whole: IdRange, documents: int, collection: MongoCollection) -> Iterator[IdRange]:
    """Cuts a range at ids of a random sample, in their order.

    Args:
        whole: The range.
        documents: About as many documents as the collection has.
        collection: Where they are.
    """
    after = whole.after
    if documents >= _LEAST_DOCUMENTS_TO_CUT and _jumps_into_index(collection):
        for identifier in _sample(whole, min(documents // _DOCUMENTS_OF_A_RANGE, _MOST_RANGES), collection):
            if identifier not in (after, whole.last):
                yield replace(whole, after=after, last=identifier)
                after = identifier
    yield replace(whole, after=after)


def _jumps_into_index(collection: MongoCollection) -> bool:
    """Whether the server is MongoDB itself: others of its protocol read a whole collection to find a sample."""
    return "storageEngines" in collection.database.client.server_info()


def _sample(whole: IdRange, size: int, collection: MongoCollection) -> list[Any]:
    """Ids of the range in the order of the server; none where the server cannot take a sample."""
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
