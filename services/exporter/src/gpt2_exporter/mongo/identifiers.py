"""`_id` values: their order, their JSON, and their text in a corpus.

MongoDB orders values of all types, but a comparison such as `$lte` only matches values of the same type bracket. So a
collection with ids of several brackets is read bracket by bracket.
"""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import bson
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
"""Options of decoding: dates keep their milliseconds in any year, so that every `_id` survives a round trip."""

_EXACT_JSON = json_util.CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)

_RELAXED_JSON = json_util.RELAXED_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
# The text of an `_id` of another type: an ObjectId, a number, a bool or null; objects begin with a brace.
_LIKE_ANOTHER = re.compile(
    r'[0-9a-f]{24}|-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?|true|false|null|["{].*', re.ASCII | re.DOTALL
)

# Bool before the numbers: in Python it is one of them.
_BRACKET_OF_TYPE: tuple[tuple[type, str], ...] = (
    (MinKey, "min key"),
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
    (MaxKey, "max key"),
)

# Early enough for a query of the greatest date; servers other than MongoDB itself cannot read an earlier one.
_YEAR_ONE = DatetimeMS(-62_135_596_800_000)

BRACKET_RANGES: Mapping[str, Mapping[str, Any]] = {
    "min key": {"$eq": MinKey()},
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
    "max key": {"$eq": MaxKey()},
}
"""Condition of a query for the greatest value of each bracket, in the order in which MongoDB sorts brackets."""

_RANKS = {bracket: rank for rank, bracket in enumerate(BRACKET_RANGES)}


def bracket_of(identifier: Any) -> str:
    """Returns the type bracket of an `_id`.

    Raises:
        FailedPrecondition: Its type is not in this order, such as code.
    """
    for kind, name in _BRACKET_OF_TYPE:
        # Code is a string in Python, but not in MongoDB.
        if isinstance(identifier, kind) and not isinstance(identifier, Code):
            return "nan" if is_nan(identifier) else name
    raise FailedPrecondition(
        f"the collection has an _id of the type {type(identifier).__name__}, which the exporter cannot read in order: "
        "give that document another _id, or leave it out by source.filter"
    )


def order_key(identifier: Any) -> Any:
    """Returns a key that sorts the ids of a bracket as MongoDB does.

    Numbers sort by their exact value, strings by their bytes, binary data by length, subtype and bytes, objects by
    their fields, where all values in them have a bracket.
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
    """Returns the error for a server that does not sort `_id`s as MongoDB does: an export could lose or double some."""
    return FailedPrecondition(
        f"the server does not return the _ids of {collection} in their order, or some twice as a view can, so that an "
        "export could lose documents or double them: use a collection of MongoDB, or of the server of `gpt2 stack up`"
    )


def is_alone(identifier: Any) -> bool:
    """Whether an `_id` is the only value of its bracket."""
    return "$eq" in BRACKET_RANGES[bracket_of(identifier)]


def up_to(max_id: Any, after: Any | None = None) -> Mapping[str, Any]:
    """Returns a condition for the ids of a bracket up to `max_id`, and after another one where that is given."""
    if is_alone(max_id):
        return {"$eq": max_id}
    return {"$lte": max_id} if after is None else {"$gt": after, "$lte": max_id}


def to_json(value: Any) -> str:
    """Returns BSON values as canonical Extended JSON, which keeps every type."""
    text: str = json_util.dumps(value, json_options=_EXACT_JSON, separators=(",", ":"))
    return text


def from_json(text: str) -> Any:
    """Reads what `to_json` wrote. Raises ValueError, TypeError, KeyError or BSONError when it is something else."""
    return json_util.loads(text, json_options=_EXACT_JSON)


def id_text(identifier: Any) -> str:
    """Returns the text of an `_id` in a corpus, different for every `_id` of a collection.

    ObjectIds are hexadecimal, strings unchanged, others relaxed Extended JSON. A string that could be the `_id` of
    another type, such as `"1"`, is written as JSON, with its quotes.
    """
    if isinstance(identifier, ObjectId):
        return str(identifier)
    if isinstance(identifier, str) and not _LIKE_ANOTHER.fullmatch(identifier):
        return identifier
    if _has_operator(identifier):
        # Extended JSON would read a field such as `$oid` as a value of another type.
        return _dumps({"$bson": bson.encode({"_id": identifier}, codec_options=CODEC).hex()})
    return _dumps(identifier)


def _dumps(value: Any) -> str:
    text: str = json_util.dumps(value, json_options=_RELAXED_JSON, separators=(",", ":"), ensure_ascii=False)
    return text


def _has_operator(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_operator, value))
    return isinstance(value, dict) and any(name.startswith("$") or _has_operator(item) for name, item in value.items())
