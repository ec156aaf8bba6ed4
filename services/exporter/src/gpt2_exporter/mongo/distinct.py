"""Checks that the `_id`s of a range come in strict order: so none comes twice, and none from beyond the range."""

import hashlib
from collections.abc import Sequence
from typing import Any

from pymongo.collection import Collection as MongoCollection
from pymongo.errors import OperationFailure

from gpt2_exporter.mongo.identifier import bracket_of, order_key, out_of_order, to_json
from gpt2_exporter.mongo.plain_documents import ObjectIds
from gpt2_exporter.mongo.ranges import IdRange

_DIGEST_BYTES = 16


class DistinctIds:
    """What was seen of a range. Memory is flat, but for ids that are objects, or strings under a collation.

    Args:
        id_range: The range.
        collection: Where it is.
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
        """Checks the next ids. Raises FailedPrecondition where they are not in order, or not of the range."""
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
        # Not allowed to list collections: most have none.
        return False
