"""`_id` values: their text, and their order.

MongoDB orders values of all types, but a comparison such as `$lte` only matches values of the same bracket of types.
So a collection whose ids are of several brackets is read bracket by bracket.
"""

from collections.abc import Mapping
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

_ID_JSON = json_util.RELAXED_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
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


def bracket_of(identifier: Any) -> str:
    """The bracket of types that an `_id` belongs to.

    Raises:
        FailedPrecondition: It is of a type that has no place in this order, such as code.
    """
    for kind, name in _BRACKET_OF_TYPE:
        # Code is a string to Python, and nothing of the kind to MongoDB.
        if isinstance(identifier, kind) and not isinstance(identifier, Code):
            return name
    raise FailedPrecondition(
        f"the collection has an _id of the type {type(identifier).__name__}, which the exporter cannot read in order: "
        "give that document another _id, or leave it out by source.filter"
    )


def is_before(identifier: Any, other: Any) -> bool:
    """Whether a number, or binary data, comes before another; False for others, whose order the server alone knows."""
    numbers = int | float
    if isinstance(identifier, numbers) and isinstance(other, numbers):
        return identifier < other
    return isinstance(identifier, bytes) and isinstance(other, bytes) and _binary_key(identifier) < _binary_key(other)


def _binary_key(value: bytes) -> tuple[int, int, bytes]:
    """By length, then subtype, then bytes, as MongoDB orders them."""
    return len(value), value.subtype if isinstance(value, Binary) else 0, bytes(value)


def out_of_order(collection: str) -> FailedPrecondition:
    """The error for a server that does not sort `_id`s as it compares them: an export from it would lose some."""
    return FailedPrecondition(
        f"the server does not return the _ids of {collection} in their order (the embedded stand-in sorts numbers "
        "and binary data, such as UUIDs, as text): use ObjectIds or text as _id, or MongoDB itself"
    )


def up_to(greatest: Any, after: Any | None = None) -> Mapping[str, Any]:
    """A condition for the ids of one bracket up to its greatest, and after another where that is given."""
    if bracket_of(greatest) in ("least", "null", "greatest"):
        return {"$eq": greatest}
    return {"$lte": greatest} if after is None else {"$gt": after, "$lte": greatest}


def id_text(identifier: Any) -> str:
    """The `id` of a document in a corpus: hexadecimal for an ObjectId, a string as it is, others as Extended JSON."""
    if isinstance(identifier, ObjectId | str):
        return str(identifier)
    text: str = json_util.dumps(identifier, json_options=_ID_JSON, separators=(",", ":"), ensure_ascii=False)
    return text


def to_json(value: Any) -> str:
    """Writes BSON values as canonical Extended JSON, which keeps every type."""
    text: str = json_util.dumps(value, json_options=_EXACT_JSON, separators=(",", ":"))
    return text


def from_json(text: str) -> Any:
    """Reads what `to_json` wrote. Raises ValueError, TypeError, KeyError or BSONError when it is something else."""
    return json_util.loads(text, json_options=_EXACT_JSON)
