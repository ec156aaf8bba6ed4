"""Each rule of the protos can be kept and broken: values beside each of its bounds, made from the descriptors."""

import importlib
import math
import pkgutil
import re
from functools import cache

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

import gpt2
from gpt2_rules import describe, is_required, value_violations, violations
from gpt2_rules.reading import is_map, rules_of

_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
_NUMBERS = (*_INTEGERS, FieldDescriptor.CPPTYPE_DOUBLE)
# Of these, each pattern takes one, and each refuses one.
_TEXTS = ("a", "ab", "a/b", ";", "--runner=x", "", "\n", "\x00", " ", "ä b.", "$", ".")


@cache
def messages():
    """All messages of the protos, those inside others too."""
    modules = [item.name for item in pkgutil.walk_packages(gpt2.__path__, "gpt2.") if item.name.endswith("_pb2")]
    waiting = [
        message
        for name in modules
        for message in importlib.import_module(name).DESCRIPTOR.message_types_by_name.values()
    ]
    found = []
    while waiting:
        message = waiting.pop()
        found.append(message)
        waiting += message.nested_types
    return sorted(found, key=lambda message: message.full_name)


def ruled_fields():
    return [field for message in messages() for field in message.fields if rules_of(field).ByteSize()]


def value_field(field):
    return field.message_type.fields_by_name["value"] if is_map(field) else field


def numbers_beside(rules, whole):
    """Pairs of a number that keeps the rules of a bound and one, as near as can be, that breaks them."""

    def next_to(bound, direction):
        return int(bound) + direction if whole else math.nextafter(bound, direction * math.inf)

    exact = int if whole else float
    for name, direction in (("minimum", 1), ("maximum", -1)):
        bound = getattr(rules, name)
        if rules.HasField(name):
            yield exact(bound), next_to(bound, -direction)
        bound = getattr(rules, f"exclusive_{name}")
        if rules.HasField(f"exclusive_{name}"):
            yield next_to(bound, direction), exact(bound)
    for number in rules.also:
        yield exact(number), next_to(number, -1)
    if not whole:
        yield from ((None, number) for number in (math.nan, math.inf, -math.inf))


def texts_beside(rules):
    """Pairs of a text that keeps the rules and one that breaks them; None where there is none."""
    if rules.one_of:
        yield from ((text, f"{text} ") for text in rules.one_of)
    if rules.pattern:
        fitting = [text for text in _TEXTS if re.fullmatch(rules.pattern, text)]
        others = [text for text in _TEXTS if not re.fullmatch(rules.pattern, text)]
        assert fitting, f"no text keeps {rules.pattern}"
        assert others, f"each text keeps {rules.pattern}"
        yield from zip(fitting[:1] * len(others), others, strict=True)
    letter = next((text for text in ("a", "ä", "-") if re.fullmatch(rules.pattern or ".*", text)), "a")
    for limit in ("max_length", "max_bytes"):
        if rules.HasField(limit):
            most = getattr(rules, limit)
            yield letter * most, letter * (most + 1)
    if rules.HasField("min_length"):
        yield letter * rules.min_length, letter * (rules.min_length - 1)


@pytest.mark.parametrize("field", ruled_fields(), ids=lambda field: field.full_name)
def test_a_rule_fits_its_field_and_says_what_it_means(field):
    rules, value = rules_of(field), value_field(field)
    assert not (rules.HasField("number") and value.cpp_type not in _NUMBERS)
    texts = [rules.text, rules.key] if rules.HasField("key") else [rules.text]
    assert not (rules.HasField("text") and value.cpp_type != FieldDescriptor.CPPTYPE_STRING)
    assert not (rules.HasField("list") and not field.is_repeated)
    assert not (rules.HasField("key") and not is_map(field))
    for text in texts:
        re.compile(text.pattern)
        assert bool(text.pattern) == bool(text.meaning)
        assert not (text.one_of and text.pattern)
        assert len(set(text.one_of)) == len(text.one_of)
        assert not text.HasField("max_length") or text.min_length <= text.max_length
    number = rules.number
    assert not (number.HasField("minimum") and number.HasField("exclusive_minimum"))
    assert not (number.HasField("maximum") and number.HasField("exclusive_maximum"))
    bounds = [getattr(number, item.name) for item in number.DESCRIPTOR.fields[:4] if number.HasField(item.name)]
    assert bounds == sorted(bounds)
    assert value.cpp_type not in _INTEGERS or all(bound.is_integer() for bound in bounds)
    assert not rules.list.HasField("max_items") or rules.list.min_items <= rules.list.max_items
    if rules.WhichOneof("value") or rules.HasField("list") or rules.HasField("key"):
        assert describe(field)


@pytest.mark.parametrize("field", ruled_fields(), ids=lambda field: field.full_name)
def test_values_beside_each_bound_are_taken_and_refused(field):
    rules, value = rules_of(field), value_field(field)
    whole = value.cpp_type in _INTEGERS
    pairs = list(numbers_beside(rules.number, whole) if rules.HasField("number") else texts_beside(rules.text))
    lonely = {field.name} if rules.list.min_items > 1 else set()
    for kept, broken in pairs:
        if kept is not None:
            assert set(problems(field, [kept])) <= lonely, kept
        # A field without presence that has its type's default is not set.
        if field.has_presence or field.is_repeated or broken != field.default_value:
            assert set(problems(field, [broken])) - lonely, broken
        if not is_map(field):
            assert value_violations(field, [broken] if field.is_repeated else broken)
    if rules.HasField("key"):
        for kept, broken in texts_beside(rules.key):
            assert not problems(field, [""], key=kept)
            assert problems(field, [""], key=broken)
    for limit, step in (("max_items", 1), ("min_items", -1)):
        if rules.list.HasField(limit):
            count = getattr(rules.list, limit)
            items = [number if whole else f"i{number}" for number in range(1, count + 2)]
            assert field.name not in problems(field, items[:count])
            assert field.name in problems(field, items[: count + step])
    if rules.list.unique:
        kept = pairs[0][0]
        assert f"{field.name}[1]" in problems(field, [kept, kept])


def problems(field, values, key=None):
    """What is said of a field, and of what is in it, in a message with nothing else."""
    message = GetMessageClass(field.containing_type)()
    content = getattr(message, field.name)
    if is_map(field):
        for number, value in enumerate(values):
            content[f"k{number}" if key is None else key] = value
    elif field.is_repeated and field.message_type is not None:
        for _ in values:
            content.add()
    elif field.is_repeated:
        content.extend(values)
    else:
        setattr(message, field.name, values[0])
    inside = re.compile(rf"{field.name}(\[.*\])?", re.DOTALL)
    return [path for path, _ in violations(message) if inside.fullmatch(path)]


@pytest.mark.parametrize("message", messages(), ids=lambda message: message.full_name)
def test_of_an_empty_message_what_is_required_is_missed_and_nothing_else(message):
    fields = {field.name for field in message.fields if is_required(field)}
    oneofs = {oneof.name for oneof in message.oneofs if is_required(oneof)}
    found = violations(GetMessageClass(message)())
    assert {path for path, _ in found} == fields | oneofs
    assert all(description.startswith("is required") for _, description in found)
