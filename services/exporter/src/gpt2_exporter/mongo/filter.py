"""The query of a request: MongoDB Extended JSON that cannot make the server run code."""

from collections.abc import Iterator, Mapping
from typing import Any

from bson import json_util
from bson.errors import BSONError

from gpt2_common.errors import InvalidRequest

FIELD = "source.filter"
_CODE_OPERATORS = frozenset({"$where", "$function", "$accumulator"})


def parse_filter(text: str) -> dict[str, Any]:
    """Reads a query in Extended JSON, canonical or relaxed; an empty text asks for everything.

    Raises:
        InvalidRequest: It is no JSON object, or holds an operator that runs JavaScript on the server.
    """
    if not text:
        return {}
    try:
        query = json_util.loads(text)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, BSONError) as error:
        raise InvalidRequest([(FIELD, f"is not MongoDB Extended JSON: {error}")]) from error
    if not isinstance(query, dict):
        raise InvalidRequest([(FIELD, 'must be a JSON object, such as {"lang": "de"}')])
    forbidden = sorted(_CODE_OPERATORS.intersection(_keys(query)))
    if forbidden:
        raise InvalidRequest(
            [(FIELD, f"{', '.join(forbidden)} would run code on the database server: use plain query operators")]
        )
    return query


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)
