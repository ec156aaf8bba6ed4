"""The id of a document in a corpus: a text for its `_id`, another one for every other `_id`."""

import re
from typing import Any

import bson
from bson import json_util
from bson.codec_options import DatetimeConversion
from bson.objectid import ObjectId

from gpt2_exporter.mongo.identifier import CODEC

_JSON = json_util.RELAXED_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
# What an `_id` of another type is written as: an ObjectId, a number, a bool or null; objects begin with a brace.
_LIKE_ANOTHER = re.compile(
    r'[0-9a-f]{24}|-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?|true|false|null|["{].*', re.ASCII | re.DOTALL
)


def id_text(identifier: Any) -> str:
    """The text: hexadecimal for an ObjectId, a string as it is, others as relaxed Extended JSON.

    A string that would read as the `_id` of another type, such as `"1"`, is written as JSON, with its quotes.
    """
    if isinstance(identifier, ObjectId):
        return str(identifier)
    if isinstance(identifier, str) and not _LIKE_ANOTHER.fullmatch(identifier):
        return identifier
    if _has_operator(identifier):
        # Fields such as `$oid` would read as a value of another type.
        return _dumps({"$bson": bson.encode({"_id": identifier}, codec_options=CODEC).hex()})
    return _dumps(identifier)


def _dumps(value: Any) -> str:
    text: str = json_util.dumps(value, json_options=_JSON, separators=(",", ":"), ensure_ascii=False)
    return text


def _has_operator(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_operator, value))
    return isinstance(value, dict) and any(name.startswith("$") or _has_operator(item) for name, item in value.items())
