"""Updates: what a document becomes."""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from gpt2_orchestration.stack.mongodb.errors import IMMUTABLE_FIELD, CommandError, unsupported
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.paths import MISSING, get, put
from gpt2_orchestration.stack.mongodb.query import compile_condition, compile_filter, is_operators

Document = dict[str, Any]
_INT32 = 1 << 31
_INT64 = 1 << 63


def updated(document: Document, change: Any, *, inserts: bool = False) -> Document:
    """The document after a change: operators, or a document in its place.

    Args:
        document: The document.
        change: What an update command calls `u`.
        inserts: Whether the document is a new one, of an upsert.

    Raises:
        CommandError: The change is none, is not supported, or would change `_id`.
    """
    if not isinstance(change, dict):
        raise unsupported("updates by a pipeline")
    if not next(iter(change), "").startswith("$"):
        result = {name: value for name, value in change.items() if name != "_id"}
        identifier = change.get("_id", document.get("_id", MISSING))
        result = result if identifier is MISSING else {"_id": identifier, **result}
    else:
        result = copy.deepcopy(document)
        for name, fields in change.items():
            _apply(result, name, fields, inserts=inserts)
    if "_id" in document and sort_key(result.get("_id")) != sort_key(document["_id"]):
        raise CommandError("Performing an update would modify the immutable field '_id'", IMMUTABLE_FIELD)
    return result


def upserted(query: Mapping[str, Any], change: Any) -> Document:
    """The document that an upsert inserts where nothing matches."""
    document: Document = {}
    operators = isinstance(change, dict) and next(iter(change), "").startswith("$")
    for path, value in _equalities(query):
        if operators or path == "_id":
            put(document, path, value)
    return updated(document, change, inserts=True)


def _equalities(query: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, condition in query.items():
        if name == "$and":
            found += [pair for part in condition for pair in _equalities(part)]
        elif name.startswith("$"):
            continue
        elif not is_operators(condition):
            found.append((name, condition))
        elif "$eq" in condition:
            found.append((name, condition["$eq"]))
    return found


def _apply(document: Document, name: str, fields: Any, *, inserts: bool) -> None:
    if not isinstance(fields, dict):
        raise CommandError(f"{name} needs an object")
    if name == "$setOnInsert" and not inserts:
        return
    change = _OPERATORS.get(name)
    if change is None:
        raise unsupported(f"the update operator {name}")
    for path, operand in fields.items():
        if name == "$rename":
            value = get(document, path.split("."))
            if value is not MISSING:
                put(document, path, MISSING)
                put(document, operand, value)
            continue
        before = get(document, path.split("."))
        after = change(before, operand)
        if after is not before or after is not MISSING:
            put(document, path, after)


def _added(before: Any, operand: Any) -> Any:
    return _calculated(before, operand, lambda first, second: first + second, "$inc")


def _multiplied(before: Any, operand: Any) -> Any:
    return _calculated(before, operand, lambda first, second: first * second, "$mul")


def _calculated(before: Any, operand: Any, calculate: Callable[[Any, Any], Any], name: str) -> Any:
    before = (0 if name == "$mul" or not isinstance(operand, float) else 0.0) if before is MISSING else before
    for value in (before, operand):
        if isinstance(value, Decimal128):
            raise unsupported(f"{name} with Decimal128")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CommandError(f"{name} needs numbers, not {value!r}")
    result = calculate(before, operand)
    if isinstance(result, float):
        return result
    if not -_INT64 <= result < _INT64:
        raise CommandError(f"{name} overflows")
    long = isinstance(before, Int64) or isinstance(operand, Int64) or not -_INT32 <= result < _INT32
    return Int64(result) if long else int(result)


def _smaller(before: Any, operand: Any) -> Any:
    return operand if before is MISSING or sort_key(operand) < sort_key(before) else before


def _greater(before: Any, operand: Any) -> Any:
    return operand if before is MISSING or sort_key(operand) > sort_key(before) else before


def _each(before: Any, operand: Any) -> tuple[list[Any], list[Any]]:
    array = [] if before is MISSING else before
    if not isinstance(array, list):
        raise CommandError("the field is no array")
    if isinstance(operand, dict) and "$each" in operand:
        if set(operand) != {"$each"}:
            raise unsupported("modifiers beside $each")
        return array, list(operand["$each"])
    return array, [operand]


def _pushed(before: Any, operand: Any) -> list[Any]:
    array, items = _each(before, operand)
    return [*array, *items]


def _added_to_set(before: Any, operand: Any) -> list[Any]:
    array, items = _each(before, operand)
    result, keys = list(array), {sort_key(item) for item in array}
    for item in items:
        if sort_key(item) not in keys:
            keys.add(sort_key(item))
            result.append(item)
    return result


def _pulled(before: Any, operand: Any) -> Any:
    if before is MISSING:
        return MISSING
    if not isinstance(before, list):
        raise CommandError("$pull needs an array")
    if isinstance(operand, dict) and not is_operators(operand):
        matcher = compile_filter(operand)
        return [item for item in before if not (isinstance(item, dict) and matcher(item))]
    condition = compile_condition(operand)
    return [item for item in before if not condition([item])]


def _now(_: Any, operand: Any) -> DatetimeMS:
    if operand is not True and operand != {"$type": "date"}:
        raise unsupported("$currentDate of another type than date")
    return DatetimeMS(int(time.time() * 1000))


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "$set": lambda _, operand: operand,
    "$setOnInsert": lambda _, operand: operand,
    "$unset": lambda _, __: MISSING,
    "$rename": lambda _, operand: operand,
    "$inc": _added,
    "$mul": _multiplied,
    "$min": _smaller,
    "$max": _greater,
    "$push": _pushed,
    "$addToSet": _added_to_set,
    "$pull": _pulled,
    "$currentDate": _now,
}
