"""Which keys of `_id` a query can match, so that not every document has to be looked at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson import Regex

from gpt2_orchestration.stack.mongodb.order import (
    ARRAY,
    GREATEST,
    LEAST,
    NOT_A_NUMBER,
    NUMBER,
    rank,
    sort_key,
)
from gpt2_orchestration.stack.mongodb.query import is_operators

_BEHIND = b"\0"


class KeyRange(NamedTuple):
    """Keys from one to before another."""

    begin: bytes
    end: bytes


WHOLE = KeyRange(b"", b"\xff")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Keys that a query can match."""

    ranges: tuple[KeyRange, ...]
    """In the order of keys; they do not overlap."""
    exact: bool
    """Whether it matches all of them."""


def id_bounds(query: Mapping[str, Any]) -> Bounds:
    """The keys that a query can match."""
    ranges: Sequence[KeyRange] = (WHOLE,)
    exact = True
    for name, condition in _clauses(query):
        found = _ranges(condition) if name == "_id" else None
        if found is None:
            exact = False
        else:
            ranges = _both(ranges, found)
    return Bounds(tuple(ranges), exact)


def _clauses(query: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, condition in query.items():
        if name == "$and" and isinstance(condition, list) and all(isinstance(part, dict) for part in condition):
            for part in condition:
                yield from _clauses(part)
        elif name == "_id" and is_operators(condition) and "$options" not in condition:
            for operator, operand in condition.items():
                yield name, {operator: operand}
        else:
            yield name, condition


def _ranges(condition: Any) -> list[KeyRange] | None:
    """The ranges of a condition with one operator at most; None where it is not met by ranges."""
    if not is_operators(condition):
        return None if isinstance(condition, Regex) else [_point(condition)]
    [(name, operand)] = condition.items()
    if name == "$eq":
        return [_point(operand)]
    if name == "$in":
        if not isinstance(operand, list) or any(isinstance(item, Regex) for item in operand):
            return None
        return [KeyRange(key, key + _BEHIND) for key in sorted({sort_key(item) for item in operand})]
    return _compared(name, operand) if name in ("$gt", "$gte", "$lt", "$lte") else None


def _point(value: Any) -> KeyRange:
    key = sort_key(value)
    return KeyRange(key, key + _BEHIND)


def _compared(name: str, operand: Any) -> list[KeyRange] | None:
    kind, key = rank(operand), sort_key(operand)
    if kind == ARRAY or key == bytes((NUMBER,)) + NOT_A_NUMBER:
        return None
    if operand is None:
        return [_point(None)] if name in ("$gte", "$lte") else []
    least, most = bytes((kind,)), bytes((kind + 1,))
    if kind == NUMBER:
        least += bytes((NOT_A_NUMBER[0] + 1,))
    elif kind in (LEAST, GREATEST):
        least, most = WHOLE
    if name in ("$gt", "$gte"):
        return [KeyRange(key + _BEHIND if name == "$gt" else key, most)]
    return [KeyRange(least, key + _BEHIND if name == "$lte" else key)]


def _both(first: Sequence[KeyRange], second: Sequence[KeyRange]) -> list[KeyRange]:
    found = (KeyRange(max(a.begin, b.begin), min(a.end, b.end)) for a in first for b in second)
    return sorted(part for part in found if part.begin < part.end)
