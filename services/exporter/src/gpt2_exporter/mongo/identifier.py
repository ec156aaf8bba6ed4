"""`_id` values: their order, and their JSON.

MongoDB orders values of all types, but a comparison such as `$lte` only matches values of the same bracket of types.
So a collection whose ids are of several brackets is read bracket by bracket.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from bson import json_util
from bson.binary import Binary
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.timestamp import Timestamp

from gpt2_common.errors import FailedPrecondition

CODEC = CodecOptions(document_class=dict, datetime_conversion=DatetimeConversion.DATETIME_MS)
"""How documents are decoded: dates keep their milliseconds whatever the year, so that every `_id` survives a round."""

_EXACT_JSON = json_util.CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)

# Bool before the numbers: Python counts it among them.
_BRACKET_OF_TYPE: tuple[tuple[type, str], ...] = (
    (MinKey, "least"),
    (type(None), "null"),
    (bool, "bool"),
    (int, "number"),
    (float, "number"),
    (Decimal128, "number"),
    (str, "string"),
    (dict, "object"),
    (bytes, "binary"),
    (ObjectId, "object id"),
    (DatetimeMS, "date"),
    (Timestamp, "timestamp"),
    (MaxKey, "greatest"),
)

# Far enough back to find the greatest date; servers that are not MongoDB itself cannot read an earlier one.
_YEAR_ONE = DatetimeMS(-62_135_596_800_000)

BRACKET_RANGES: Mapping[str, Mapping[str, Any]] = {
    "least": {"$eq": MinKey()},
    "null": {"$eq": None},
    "nan": {"$eq": float("nan")},
    "number": {"$gte": float("-inf")},
    "string": {"$gte": ""},
    "object": {"$gte": {}},
    "binary": {"$gte": Binary(b"")},
    "object id": {"$gte": ObjectId(b"\0" * 12)},
    "bool": {"$gte": False},
    "date": {"$gte": _YEAR_ONE},
    "timestamp": {"$gte": Timestamp(0, 0)},
    "greatest": {"$eq": MaxKey()},
}
"""A condition to find the greatest value of a bracket by, in the order in which MongoDB sorts the brackets."""

_RANKS = {bracket: rank for rank, bracket in enumerate(BRACKET_RANGES)}


def bracket_of(identifier: Any) -> str:
    """The bracket of types that an `_id` belongs to.

    Raises:
        FailedPrecondition: It is of a type that has no place in this order, such as code.
    """
    for kind, name in _BRACKET_OF_TYPE:
        # Code is a string to Python, and nothing of the kind to MongoDB.
        if isinstance(identifier, kind) and not isinstance(identifier, Code):
            return "nan" if is_nan(identifier) else name
    raise FailedPrecondition(
        f"the collection has an _id of the type {type(identifier).__name__}, which the exporter cannot read in order: "
        "give that document another _id, or leave it out by source.filter"
    )


def order_key(identifier: Any) -> Any:
    """What sorts the ids of a bracket as MongoDB does.

    Numbers by their exact value, strings by their bytes, binary data by length, subtype and bytes. Those of objects do
    where these hold no values that have no bracket.
    """
    if is_nan(identifier):
        return 0
    if isinstance(identifier, Decimal128):
        return identifier.to_decimal()
    if isinstance(identifier, str):
        return identifier.encode()
    if isinstance(identifier, bytes):
        return len(identifier), identifier.subtype if isinstance(identifier, Binary) else 0, bytes(identifier)
    if isinstance(identifier, dict):
        return tuple(_field_key(name, value) for name, value in identifier.items())
    if isinstance(identifier, DatetimeMS):
        return int(identifier)
    if isinstance(identifier, Timestamp):
        return identifier.time, identifier.inc
    return identifier if isinstance(identifier, int | float | ObjectId) else 0  # The only one of its bracket.


def _field_key(name: str, value: Any) -> tuple[int, bytes, Any]:
    kind = next((kind for types, kind in _BRACKET_OF_TYPE if isinstance(value, types)), "")
    return _RANKS.get(kind, -1), name.encode(), order_key(value)


def is_nan(identifier: Any) -> bool:
    """Whether it is NaN, of any type of number."""
    number = identifier.to_decimal() if isinstance(identifier, Decimal128) else identifier
    return isinstance(number, float | Decimal) and math.isnan(number)


def out_of_order(collection: str) -> FailedPrecondition:
    """The error for a server that does not sort `_id`s as MongoDB: an export from it would lose or double some."""
    return FailedPrecondition(
        f"the server does not return the _ids of {collection} in their order, or some twice as a view can, so that an "
        "export could lose documents or double them: use a collection of MongoDB, or of the server of `gpt2 stack up`"
    )


def is_alone(identifier: Any) -> bool:
    """Whether its bracket can hold no other id."""
    return "$eq" in BRACKET_RANGES[bracket_of(identifier)]


def up_to(greatest: Any, after: Any | None = None) -> Mapping[str, Any]:
    """A condition for the ids of one bracket up to its greatest, and after another where that is given."""
    if is_alone(greatest):
        return {"$eq": greatest}
    return {"$lte": greatest} if after is None else {"$gt": after, "$lte": greatest}


def to_json(value: Any) -> str:
    """Writes BSON values as canonical Extended JSON, which keeps every type."""
    text: str = json_util.dumps(value, json_options=_EXACT_JSON, separators=(",", ":"))
    return text


def from_json(text: str) -> Any:
    """Reads what `to_json` wrote. Raises ValueError, TypeError, KeyError or BSONError when it is something else."""
    return json_util.loads(text, json_options=_EXACT_JSON)
