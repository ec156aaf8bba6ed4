"""Parses the MongoDB Extended JSON of a request, which must not run code on the server."""

from collections.abc import Iterator, Mapping
from typing import Any

from bson import json_util
from bson.errors import BSONError

from gpt2_common.errors import InvalidRequest

FILTER_FIELD = "source.filter"
PROJECTION_FIELD = "source.projection"
_CODE_OPERATORS = frozenset({"$where", "$function", "$accumulator"})


def parse_filter(text: str) -> dict[str, Any]:
    """Parses a query in Extended JSON, canonical or relaxed; an empty text matches everything.

    Raises:
        InvalidRequest: It is not a JSON object, or has an operator that runs JavaScript on the server.
    """
    return _parse(FILTER_FIELD, text, '{"lang": "de"}')


def parse_projection(text: str, paths: list[str]) -> dict[str, Any]:
    """Parses a projection in Extended JSON; an empty text means only `_id` and the paths.

    Args:
        text: The projection.
        paths: Paths of the fields that the export needs.

    Raises:
        InvalidRequest: It is not a JSON object, runs JavaScript, or excludes `_id` or one of the paths.
    """
    paths = [path for path in paths if path.split(".")[0] != "_id"]
    if not text:
        # A server refuses a projection of both a field and a part of it.
        return {"_id": 1} | {path: 1 for path in paths if not any(path.startswith(f"{other}.") for other in paths)}
    projection = _parse(PROJECTION_FIELD, text, '{"text": 1}')
    if not projection.get("_id", 1):
        raise InvalidRequest([(PROJECTION_FIELD, "excludes _id, which reading needs to resume: remove `_id` from it")])
    fields = {key: value for key, value in projection.items() if key != "_id"}
    excludes = bool(fields) and not any(fields.values())
    for path in paths:
        named = any(path == key or path.startswith(key + ".") for key in fields)
        hit = named or (excludes and any(key.startswith(path + ".") for key in fields))
        if hit == excludes:
            raise InvalidRequest([(PROJECTION_FIELD, f"excludes {path}: include it, such as {{{path!r}: 1}}")])
    return {"_id": 1, **fields} if not excludes else fields


def _parse(field: str, text: str, example: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = json_util.loads(text)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, BSONError) as error:
        raise InvalidRequest([(field, f"is not MongoDB Extended JSON: {error}")]) from error
    if not isinstance(value, dict):
        raise InvalidRequest([(field, f"must be a JSON object, such as {example}")])
    forbidden = sorted(_CODE_OPERATORS.intersection(_keys(value)))
    if forbidden:
        raise InvalidRequest(
            [(field, f"{', '.join(forbidden)} would run code on the database server: use plain operators")]
        )
    return value


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)
