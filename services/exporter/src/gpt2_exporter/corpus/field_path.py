"""Finds the text of a MongoDB document or JSON object by the path of its field."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_exporter.rejects import reasons

DEFAULT_TEXT_FIELD = "text"


@dataclass(frozen=True, slots=True)
class FieldPath:
    """The path of a text, and the rule for lists on it.

    With a separator, a list, also one in a list, represents its members in order, and the texts of the members are
    joined. Members without the field, and null or empty texts, are skipped; a value of another type makes the document
    unusable.
    """

    parts: tuple[str, ...]
    """Names of the fields, from the outermost one."""
    separator: str | None = None
    """Separator between the texts of a list; None where a list makes the document unusable."""

    @classmethod
    def of(cls, path: str, separator: str | None = None) -> "FieldPath":
        """Parses a path with dots, such as `body.text`."""
        return cls(tuple(path.split(".")), separator)

    def read(self, document: Any) -> tuple[str, str]:
        """Returns the text and an empty reason, or an empty text and the reason why the document is unusable."""
        return self.read_value(follow(document, self.parts))

    def read_value(self, value: Any) -> tuple[str, str]:
        """As `read`, for a value that `follow` returned."""
        if isinstance(value, _Lists):
            return ("", reasons.IN_LIST) if self.separator is None else self._join(value)
        reason = reasons.unusable_reason(value)
        return ("", reason) if reason else (value, "")

    def _join(self, found: "_Lists") -> tuple[str, str]:
        texts: list[str] = []
        empty: set[str] = set()
        for value in found.values():
            reason = reasons.unusable_reason(value)
            if reason and value is not ... and value is not None and value != "":
                return "", reason
            if reason:
                empty.add(reason)
            else:
                texts.append(value)
        if texts:
            return (self.separator or "").join(texts), ""
        return "", empty.pop() if len(empty) == 1 else reasons.EMPTY


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list on a path, and the rest of the path."""

    members: list[Any]
    parts: Sequence[str]

    def values(self) -> Iterator[Any]:
        """Yields what the rest of the path finds in each member."""
        for member in self.members:
            value = _Lists(member, self.parts) if isinstance(member, list) else follow(member, self.parts)
            if isinstance(value, _Lists):
                yield from value.values()
            else:
                yield value


def follow(value: Any, parts: Sequence[str]) -> Any:
    """Returns the value at a path; `...` where there is none. For a list, a value for `FieldPath.read_value` only."""
    for position, part in enumerate(parts):
        if isinstance(value, list):
            return _Lists(value, parts[position:])
        if not isinstance(value, dict) or part not in value:
            return ...
        value = value[part]
    return _Lists(value, ()) if isinstance(value, list) else value
