"""Descriptions of rules, in words that continue "must be", for errors, help, pages and docs."""

from google.protobuf.descriptor import FieldDescriptor

from gpt2.validation.v1 import rules_pb2
from gpt2_rules.reading import is_map, rules_of


def describe(field: FieldDescriptor) -> str:
    """What a field may hold, such as `1 to 1,000` or `one of adamw, adam`; empty where anything is allowed.

    Whether it must be set is not part of it: see `is_required`.
    """
    rules = rules_of(field)
    if field.enum_type is not None:
        value = "one of " + ", ".join(item.name for item in field.enum_type.values if item.number)
    elif rules.WhichOneof("value") == "number":
        value = describe_number(rules.number)
    else:
        value = describe_text(rules.text)
    if not field.is_repeated:
        return value
    key = f"each key {describe_text(rules.key)}" if rules.HasField("key") else ""
    each = f"each {'value ' if is_map(field) else ''}{value}" if value else ""
    unique = "no two the same" if rules.list.unique else ""
    return "; ".join(part for part in (describe_count(rules.list), unique, key, each) if part)


def describe_number(rules: rules_pb2.NumberRules) -> str:
    """The range of a number, such as `over 0` or `0 to under 1`."""
    bounds = _range(rules) or "a finite number"
    return " or ".join([*map(format_number, rules.also), bounds])


def describe_text(rules: rules_pb2.TextRules) -> str:
    """What a string may be; empty where anything is allowed."""
    if rules.one_of:
        return "one of " + ", ".join(rules.one_of)
    parts = [part for part in (rules.meaning, describe_length(rules)) if part]
    return ", ".join(parts) or ("not empty" if rules.min_length else "")


def describe_length(rules: rules_pb2.TextRules) -> str:
    """How long a string may be; empty where any length is allowed."""
    characters = _count(rules.min_length, rules.max_length if rules.HasField("max_length") else None, "character")
    size = f"{rules.max_bytes:,} bytes of UTF-8 at most" if rules.HasField("max_bytes") else ""
    return ", ".join(filter(None, (characters, size)))


def describe_count(rules: rules_pb2.ListRules) -> str:
    """How many items a list may have; empty where any number is allowed."""
    return _count(rules.min_items, rules.max_items if rules.HasField("max_items") else None, "item")


def format_number(number: float) -> str:
    """A number with thousands separated, and no more digits than it needs."""
    return f"{int(number):,}" if number.is_integer() else f"{number:g}"


def _range(rules: rules_pb2.NumberRules) -> str:
    low, over = format_number(rules.minimum), format_number(rules.exclusive_minimum)
    high, under = format_number(rules.maximum), format_number(rules.exclusive_maximum)
    match [rules.HasField(name) for name in ("minimum", "exclusive_minimum", "maximum", "exclusive_maximum")]:
        case [True, _, True, _]:
            return f"{low} to {high}"
        case [True, _, _, True]:
            return f"{low} to under {under}"
        case [True, _, _, _]:
            return f"{low} or greater"
        case [_, True, True, _]:
            return f"over {over} and at most {high}"
        case [_, True, _, True]:
            return f"over {over} and under {under}"
        case [_, True, _, _]:
            return f"over {over}"
        case [_, _, True, _]:
            return f"at most {high}"
        case [_, _, _, True]:
            return f"under {under}"
    return ""


def _count(minimum: int, maximum: int | None, unit: str) -> str:
    if maximum is None:
        return f"{minimum:,} {unit}s or more" if minimum > 1 else ""
    if minimum > 0:
        return f"{minimum:,} to {maximum:,} {unit}s"
    return f"{maximum:,} {unit}s at most"
