"""Queries: whether a document matches a filter, by MongoDB's rules of comparison."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bson import Regex

from gpt2_orchestration.stack.mongodb.errors import CommandError, unsupported
from gpt2_orchestration.stack.mongodb.expressions import evaluate, is_true
from gpt2_orchestration.stack.mongodb.order import ARRAY, GREATEST, LEAST, NOT_A_NUMBER, NUMBER, rank, sort_key
from gpt2_orchestration.stack.mongodb.paths import MISSING, find_values
from gpt2_orchestration.stack.mongodb.types import has_type, type_codes

Document = dict[str, Any]
Matcher = Callable[[Document], bool]
_Test = Callable[[list[Any]], bool]
"""Of what a path finds in a document."""


def compile_filter(query: Mapping[str, Any]) -> Matcher:
    """A function that tells whether a document matches. Raises CommandError for what is no query, or not supported."""
    tests = [_clause(name, condition) for name, condition in query.items()]
    return lambda document: all(test(document) for test in tests)


def _clause(name: str, condition: Any) -> Matcher:
    if name in ("$and", "$or", "$nor"):
        if not isinstance(condition, list) or not condition or not all(isinstance(part, dict) for part in condition):
            raise CommandError(f"{name} must be a nonempty array of objects")
        parts = [compile_filter(part) for part in condition]
        if name == "$and":
            return lambda document: all(part(document) for part in parts)
        some = name == "$or"
        return lambda document: any(part(document) for part in parts) == some
    if name == "$expr":
        return lambda document: is_true(evaluate(condition, document))
    if name == "$comment":
        return lambda _: True
    if name.startswith("$"):
        raise unsupported(f"the query operator {name}")
    test, parts_of_path = compile_condition(condition), name.split(".")
    return lambda document: test(list(find_values(document, parts_of_path)))


def compile_condition(condition: Any) -> _Test:
    """A function that tells whether what a path finds meets a condition: a value, or an object of operators."""
    if not is_operators(condition):
        return _equals(condition)
    options = condition.get("$options", "")
    tests = [_operator(name, value, options) for name, value in condition.items() if name != "$options"]
    return lambda values: all(test(values) for test in tests)


def is_operators(condition: Any) -> bool:
    """Whether a condition is an object of operators, and not a value to compare with."""
    if not isinstance(condition, dict) or not condition:
        return False
    return next(iter(condition)).startswith("$") and "$ref" not in condition and "$id" not in condition


def _operator(name: str, operand: Any, options: str) -> _Test:
    if name in _COMPARISONS:
        return _compares(name, operand)
    if name in ("$in", "$nin", "$all"):
        return _among(name, operand)
    match name:
        case "$eq":
            return _equals(operand, regex=False)
        case "$ne":
            return _not(_equals(operand, regex=False))
        case "$not":
            return _not(_equals(operand) if isinstance(operand, Regex) else _negated(operand))
        case "$exists":
            return lambda values: any(value is not MISSING for value in values) == is_true(operand)
        case "$regex":
            return _matches(operand, options)
        case "$type":
            codes = type_codes(operand)
            return lambda values: any(has_type(value, codes) for value in _candidates(values))
        case "$size":
            return lambda values: any(isinstance(value, list) and len(value) == operand for value in values)
        case "$mod":
            return _modulo(operand)
        case "$elemMatch":
            return _element(operand)
    raise unsupported(f"the query operator {name}")


_COMPARISONS: Mapping[str, Callable[[bytes, bytes], bool]] = {
    "$gt": bytes.__gt__,
    "$gte": bytes.__ge__,
    "$lt": bytes.__lt__,
    "$lte": bytes.__le__,
}


def _candidates(values: Sequence[Any]) -> list[Any]:
    """The values, and the members of those that are arrays."""
    found = list(values)
    for value in values:
        if isinstance(value, list):
            found += value
    return [value for value in found if value is not MISSING]


def _equals(operand: Any, *, regex: bool = True) -> _Test:
    if regex and isinstance(operand, Regex):
        return _matches(operand, "")
    key = sort_key(operand)
    if operand is None:
        return lambda values: any(value is MISSING for value in values) or _holds(values, key)
    return lambda values: _holds(values, key)


def _holds(values: Sequence[Any], key: bytes) -> bool:
    return any(sort_key(value) == key for value in _candidates(values))


def _compares(name: str, operand: Any) -> _Test:
    compare, key, kind = _COMPARISONS[name], sort_key(operand), rank(operand)
    if operand is None:
        equal = name in ("$gte", "$lte")
        return lambda values: equal and (any(value is MISSING for value in values) or _holds(values, key))
    if kind in (LEAST, GREATEST):
        # These two compare with values of every type.
        return lambda values: any(compare(sort_key(value), key) for value in _candidates(values))
    nothing = bytes((NUMBER,)) + NOT_A_NUMBER

    def test(values: list[Any]) -> bool:
        found = values if kind == ARRAY else _candidates(values)
        keys = (sort_key(value) for value in found if value is not MISSING and rank(value) == kind)
        # NaN is neither less nor greater than a number, but equal to itself.
        return any(compare(other, key) for other in keys if (other == nothing) == (key == nothing))

    return test


def _among(name: str, operand: Any) -> _Test:
    if not isinstance(operand, list):
        raise CommandError(f"{name} needs an array")
    if name == "$all":
        each = [_element(item["$elemMatch"]) if _is_element(item) else _equals(item) for item in operand]
        return lambda values: bool(each) and all(test(values) for test in each)
    keys = {sort_key(item) for item in operand if not isinstance(item, Regex)}
    patterns = [_matches(item, "") for item in operand if isinstance(item, Regex)]
    absent = None in operand

    def test(values: list[Any]) -> bool:
        if any(sort_key(value) in keys for value in _candidates(values)) or any(part(values) for part in patterns):
            return True
        return absent and any(value is MISSING for value in values)

    return _not(test) if name == "$nin" else test


def _is_element(item: Any) -> bool:
    return isinstance(item, dict) and set(item) == {"$elemMatch"}


def _not(test: _Test) -> _Test:
    return lambda values: not test(values)


def _negated(operand: Any) -> _Test:
    if not is_operators(operand):
        raise CommandError("$not needs a regex or an object of operators")
    return compile_condition(operand)


def _matches(operand: Any, options: str) -> _Test:
    if isinstance(operand, Regex):
        pattern, flags = operand.pattern, operand.flags & ~re.UNICODE
    else:
        pattern, flags = operand, 0
    for letter in options:
        if letter not in "imsxu":
            raise CommandError(f"$options has no {letter!r}")
        flags |= 0 if letter == "u" else getattr(re, letter.upper())
    if not flags & re.IGNORECASE:
        flags |= re.ASCII  # As in PCRE, where classes such as \\w hold no letters beyond ASCII.
    try:
        compiled = re.compile(pattern, flags)
    except (re.error, TypeError) as error:
        raise CommandError(f"the regex {pattern!r} is not valid: {error}") from error
    return lambda values: any(isinstance(value, str) and compiled.search(value) for value in _candidates(values))


def _modulo(operand: Any) -> _Test:
    if not isinstance(operand, list) or len(operand) != 2 or not int(operand[0]):
        raise CommandError("$mod needs an array of a divisor and a remainder")
    divisor, remainder = int(operand[0]), int(operand[1])

    def test(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        rest = abs(int(value)) % abs(divisor)
        return (rest if value > 0 else -rest) == remainder

    return lambda values: any(test(value) for value in _candidates(values))


def _element(operand: Any) -> _Test:
    if not isinstance(operand, dict):
        raise CommandError("$elemMatch needs an object")
    if is_operators(operand) and next(iter(operand)) not in ("$and", "$or", "$nor", "$expr"):
        condition = compile_condition(operand)

        def test(item: Any) -> bool:
            return condition([item])
    else:
        matcher = compile_filter(operand)

        def test(item: Any) -> bool:
            return isinstance(item, dict) and matcher(item)

    return lambda values: any(test(item) for value in values if isinstance(value, list) for item in value)
