"""Aggregation expressions: the common ones; the others are refused."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.objectid import ObjectId

from gpt2_orchestration.stack.mongodb.errors import CommandError, unsupported
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.paths import MISSING


def is_true(value: Any) -> bool:
    """Whether MongoDB takes a value for true: all but false, null, zero and what is missing."""
    if isinstance(value, Decimal128):
        value = value.to_decimal()
    if isinstance(value, bool | int | float | Decimal):
        return bool(value)
    return value is not None and value is not MISSING


def evaluate(expression: Any, document: Mapping[str, Any]) -> Any:
    """The value of an expression for a document; `...` where it names a field that is missing."""
    if isinstance(expression, str) and expression.startswith("$"):
        return _variable(expression, document)
    if isinstance(expression, list):
        return [None if (value := evaluate(item, document)) is MISSING else value for item in expression]
    if not isinstance(expression, dict):
        return expression
    if len(expression) == 1 and (name := next(iter(expression))).startswith("$"):
        return _call(name, expression[name], document)
    values = {name: evaluate(item, document) for name, item in expression.items()}
    if any(name.startswith("$") for name in values):
        raise CommandError("an expression has one operator alone")
    return {name: value for name, value in values.items() if value is not MISSING}


def _variable(name: str, document: Mapping[str, Any]) -> Any:
    if name.startswith("$$"):
        first, _, rest = name[2:].partition(".")
        if first == "REMOVE":
            return MISSING
        if first not in ("ROOT", "CURRENT"):
            raise unsupported(f"the variable {name}")
        return _get(document, rest.split(".")) if rest else document
    return _get(document, name[1:].split("."))


def _get(value: Any, parts: list[str]) -> Any:
    for position, part in enumerate(parts):
        if isinstance(value, list):
            found = (_get(item, parts[position:]) for item in value if isinstance(item, dict))
            return [item for item in found if item is not MISSING]
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def _call(name: str, operand: Any, document: Mapping[str, Any]) -> Any:
    if name == "$literal":
        return operand
    if name == "$cond":
        parts = [operand.get(part) for part in ("if", "then", "else")] if isinstance(operand, dict) else operand
        if not isinstance(parts, list) or len(parts) != 3:
            raise CommandError("$cond needs if, then and else")
        return evaluate(parts[1] if is_true(evaluate(parts[0], document)) else parts[2], document)
    values = [evaluate(item, document) for item in (operand if isinstance(operand, list) else [operand])]
    if name == "$ifNull":
        return next((value for value in values if value is not None and value is not MISSING), values[-1])
    if name in ("$and", "$or"):
        return (all if name == "$and" else any)(is_true(value) for value in values)
    if name == "$not":
        return not is_true(values[0])
    if name in _COMPARISONS:
        if len(values) != 2:
            raise CommandError(f"{name} needs two values")
        first, second = (b"" if value is MISSING else sort_key(value) for value in values)
        return _COMPARISONS[name]((first > second) - (first < second))
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](values)
    raise unsupported(f"the expression {name}")


def _concat(values: list[Any]) -> Any:
    if any(value is None or value is MISSING for value in values):
        return None
    if not all(isinstance(value, str) for value in values):
        raise CommandError("$concat only supports strings")
    return "".join(values)


def _to_string(values: list[Any]) -> Any:
    [value] = values
    if value is None or value is MISSING:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | ObjectId | Decimal128):
        return str(value)
    if isinstance(value, DatetimeMS):
        return value.as_datetime().isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    raise unsupported(f"$toString of a value of the type {type(value).__name__}")


def _size(values: list[Any]) -> int:
    [value] = values
    if not isinstance(value, list):
        raise CommandError("$size needs an array")
    return len(value)


_COMPARISONS: Mapping[str, Callable[[int], bool]] = {
    "$eq": lambda order: order == 0,
    "$ne": lambda order: order != 0,
    "$gt": lambda order: order > 0,
    "$gte": lambda order: order >= 0,
    "$lt": lambda order: order < 0,
    "$lte": lambda order: order <= 0,
}
_FUNCTIONS: Mapping[str, Callable[[list[Any]], Any]] = {
    "$concat": _concat,
    "$toString": _to_string,
    "$size": _size,
}
