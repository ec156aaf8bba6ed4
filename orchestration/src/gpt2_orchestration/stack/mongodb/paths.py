"""Values at dotted paths: as queries see them, through arrays, and as updates change them."""

from collections.abc import Iterator, Sequence
from typing import Any

from gpt2_orchestration.stack.mongodb.errors import CommandError, unsupported

MISSING: Any = ...


def find_values(value: Any, parts: Sequence[str]) -> Iterator[Any]:
    """What a query sees at a path: a value for each object of an array on the way; `...` where a field is missing."""
    if not parts:
        yield value
    elif isinstance(value, dict):
        if parts[0] in value:
            yield from find_values(value[parts[0]], parts[1:])
        else:
            yield MISSING
    elif isinstance(value, list):
        if parts[0].isdecimal() and int(parts[0]) < len(value):
            yield from find_values(value[int(parts[0])], parts[1:])
        for item in value:
            if isinstance(item, dict):
                yield from find_values(item, parts)
    else:
        yield MISSING


def get(value: Any, parts: Sequence[str]) -> Any:
    """The value at a path that leads through objects and by number through arrays; `...` where there is none."""
    for part in parts:
        if isinstance(value, dict):
            value = value.get(part, MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a path, or removes it where the value is `...`."""
    *way, last = _parts(path)
    target: Any = document
    for part in way:
        following = get(target, [part])
        if following is MISSING:
            if value is MISSING:
                return
            following = {}
            _set(target, part, following)
        target = following
    if value is not MISSING:
        _set(target, last, value)
    elif isinstance(target, dict):
        target.pop(last, None)
    elif get(target, [last]) is not MISSING:
        # MongoDB leaves a null, so that the others keep their numbers.
        target[int(last)] = None


def _set(target: Any, part: str, value: Any) -> None:
    if isinstance(target, dict):
        target[part] = value
    elif isinstance(target, list) and part.isdecimal():
        target += [None] * (int(part) + 1 - len(target))
        target[int(part)] = value
    else:
        raise CommandError(f"Cannot create field {part!r} in a value that is no object")


def _parts(path: str) -> list[str]:
    parts = path.split(".")
    if not all(parts):
        raise CommandError(f"the path {path!r} has an empty part")
    if any(part.startswith("$") for part in parts):
        raise unsupported(f"the operator in the path {path!r}")
    return parts
